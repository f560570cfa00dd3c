"""Intel TDX quotes. Proves which TDX module, which launch and runtime measurements, and that memory is confidential."""

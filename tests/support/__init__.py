"""What tests and benchmarks share: real processes, a software TPM, a mesh, and the word on what could not run."""

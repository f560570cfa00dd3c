"""Load beside nginx: CPU per request, requests per second, and latency at a fixed rate, in interleaved rounds."""

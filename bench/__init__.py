"""Benchmarks: ``python -m bench.micro`` and ``python -m bench.load``. What they found: README.md."""

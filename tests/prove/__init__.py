"""Proofs: each promise of an issue, carried out in full, with what was measured. ``python -m tests.prove 01``."""

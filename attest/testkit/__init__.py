"""Simulated platforms for tests and demonstrations: a fake AMD with SEV-SNP machines, and a TPM in software.

Import it explicitly. Its private keys are in this repository, so evidence from it proves nothing: every verifier
refuses its root, except ``Verifier(allow_simulated=True)``, whose results then say ``simulated``.
"""

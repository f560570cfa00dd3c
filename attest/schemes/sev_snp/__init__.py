"""AMD SEV-SNP attestation reports. Proves which firmware, which launch measurement, and that memory is confidential."""

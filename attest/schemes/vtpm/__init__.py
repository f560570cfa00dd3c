"""TPM 2.0 quotes of any TPM or vTPM. Proves the state of PCRs and possession of an AK; alone, not confidentiality."""

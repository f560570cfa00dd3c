"""Azure confidential VMs: HCL reports (hardware report → runtime claims → vTPM key) and tokens of Microsoft Azure
Attestation. Stands on ``sev_snp`` and ``vtpm``, whose evidence an HCL report ties together.
"""

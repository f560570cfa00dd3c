"""Google Cloud: Confidential Space tokens, vTPM certificates of GCE instances, endorsements of launch measurements."""

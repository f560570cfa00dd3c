"""Remote attestation (RFC 9334) apart from any server: no sockets, no event loop, no clock, no randomness.

The way of the evidence, and the files that it meets in this order:

attester:       ``binding`` (claims, data_hash) → ``schemes/*/collect`` → ``attester`` → ``evidence`` → ``codec``
relying party:  ``codec`` → ``evidence`` → ``binding`` → ``schemes/*/{abi,verify,appraise}`` → ``appraise``

``verifier.Verifier`` is the door for relying parties. *Verify* is cryptography; *appraise* compares with policy.
"""

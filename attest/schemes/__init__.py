"""One folder per kind of evidence: ``abi`` (bytes to fields), ``verify`` (signature, chain), ``appraise`` (rules of a
policy against verified fields), ``collect`` (device to bytes). Schemes know neither each other nor the policy file.
"""

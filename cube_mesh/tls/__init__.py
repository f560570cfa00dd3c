"""Attested TLS, protocol ``cube-mesh/1``. Read in this order:

``connector`` (what the node uses) → ``opening`` (TCP to open channel) → ``gate`` (what must hold) → ``identity``,
``authenticator``, ``frames``, ``verdict`` (what it is made of) → ``channel`` (the record path) → ``contexts`` → ``ca``.
"""

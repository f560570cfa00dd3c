"""The node: ``cube-mesh proxy`` in front of tenants, ``cube-mesh agent`` in front of a model, one code base.

The files, in the order in which a request meets them (import contracts in ``pyproject.toml`` hold them to it):

start-up:   ``cli`` → ``config`` → ``config_rules`` → ``node`` → ``proxy`` or ``agent`` (these: the composition root)
processes:  ``cli`` → ``plan`` → ``launcher`` → ``supervisor`` → ``worker`` → ``node``; spans: ``exporter``
bytes in:   ``listener`` → ``tls`` → ``connection`` (with ``bodies``, ``deadlines``) → ``_fastpath`` → ``message``
the chain:  ``exchange`` → ``middleware`` (``CHAIN`` is the order) through ``ports``
bytes out:  ``routes`` → ``targets`` → ``upstream`` (with ``hops``, ``connectors``) → ``_fastpath`` → ``connection``
adapters:   ``identity``, ``authz``, ``audit``, ``telemetry``, ``keeper`` implement ports; only that root knows them
evidence:   ``keeper`` and ``tls`` are the only callers of the library ``attest``
"""

__version__ = "0.1.0"

"""New API keys and the block of configuration that lets them in."""

from __future__ import annotations

import json
import secrets

from cube_mesh.errors import ConfigError
from cube_mesh.identity.api_keys import SECRET_BYTES, format_key, hash_key, key_table
from cube_mesh.settings import ApiKey


def new_key(subject: str, domain: str, key_id: str = "", expires: str = "") -> tuple[str, str]:
    """(the key, its ``[[identity.api_keys]]`` block in TOML). The key itself is kept nowhere. Raises ConfigError."""
    key_id = key_id or "k" + secrets.token_hex(4)
    try:
        key = format_key(key_id, secrets.token_bytes(SECRET_BYTES))
    except ValueError as error:
        raise ConfigError(str(error), where="--id", key=key_id) from None
    row = ApiKey(id=key_id, hash=hash_key(key), subject=subject, domain=domain, expires=expires)
    key_table([row], frozenset([domain]))
    names = ("id", "hash", "subject", "domain") + (("expires",) if expires else ())
    lines = ["[[identity.api_keys]]", *(f"{name} = {json.dumps(getattr(row, name))}" for name in names)]
    return key, "\n".join(lines) + "\n"

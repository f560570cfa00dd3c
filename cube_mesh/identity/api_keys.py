"""API keys: ``cm_<id>_<secret>``, 256 random bits, known here only as the SHA-256 of the whole key.

A plain hash is enough because there is nothing to guess: a key with 256 bits of entropy cannot be found from its
digest, so no slow hash and no salt. For the same reason a look-up by digest leaks nothing through its timing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256

from cube_mesh.errors import ConfigError
from cube_mesh.ports import Principal
from cube_mesh.settings import ApiKey

PREFIX = b"cm_"
SECRET_BYTES = 32
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}").fullmatch
_HASH = re.compile(r"sha256:[0-9a-f]{64}").fullmatch


def format_key(key_id: str, secret: bytes) -> str:
    """The key to hand to its owner, once. ``secret`` is 32 bytes from the kernel's generator. Raises ValueError."""
    if not _ID(key_id):
        raise ValueError("a key id is 1 to 64 of a-z, 0-9 and hyphens, not starting with a hyphen")
    if len(secret) != SECRET_BYTES:
        raise ValueError("a secret is 32 random bytes")
    return f"cm_{key_id}_{base64.urlsafe_b64encode(secret).rstrip(b'=').decode('ascii')}"


def hash_key(key: str) -> str:
    """The value for the configuration's ``hash``."""
    return "sha256:" + sha256(key.encode("ascii")).hexdigest()


def key_table(keys: Iterable[ApiKey], domain_ids: frozenset[str]) -> dict[bytes, Principal]:
    """Digest to principal. ConfigError for a malformed or doubled id or hash, or a domain that does not exist."""
    table: dict[bytes, Principal] = {}
    ids: set[str] = set()
    for key in keys:
        where = f"identity.api_keys.{key.id}"
        if not _ID(key.id) or key.id in ids:
            raise ConfigError(f"malformed or there twice: {key.id!r}", key="identity.api_keys.id")
        if not _HASH(key.hash):
            raise ConfigError("must be sha256: and 64 lower-case hex digits", key=f"{where}.hash")
        if key.domain not in domain_ids:
            raise ConfigError(f"no such domain: {key.domain!r}", key=f"{where}.domain")
        if not key.subject:
            raise ConfigError("must not be empty", key=f"{where}.subject")
        digest = bytes.fromhex(key.hash[7:])
        if digest in table:
            raise ConfigError("another key has the same hash", key=f"{where}.hash")
        ids.add(key.id)
        expires = _expiry(key.expires, f"{where}.expires")
        table[digest] = Principal(key.subject, "api_key", key.id, key.domain, expires)
    return table


def _expiry(text: str, where: str) -> float:
    if not text:
        return float("inf")
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"not an RFC 3339 time: {text!r}", key=where) from None
    if at.tzinfo is None:
        raise ConfigError(f"needs a time zone: {text!r}", key=where)
    return at.timestamp()

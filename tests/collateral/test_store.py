"""The cache directory: who may have written it, what a file must be, and that a reader sees whole files only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.errors import MalformedEvidence
from attest.items import KINDS, Item, Record, check, decode_record, encode_record, make_record, parse_item
from attest.testkit import intel, tokens
from cube_mesh.collateral.store import Store
from cube_mesh.errors import ConfigError

ITEM = Item("intel-root-crl", "root")
CRL = intel.crl("root").public_bytes(Encoding.DER)  # ECDSA signs anew each time
KEYS = Item("jwks", "https://issuer.example/tenant")


def record(item: Item = ITEM, **changes: object) -> Record:
    body = CRL if item == ITEM else tokens.jwks(tokens.jwk())
    return make_record(item, **({"url": "https://x", "fetched_at": 1_799_999_000.0, "body": body} | changes))  # type: ignore[arg-type]


def test_what_is_put_comes_back_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "cache", create=True)
    assert store.get(ITEM) is None and store.items() == ()
    for item in (ITEM, KEYS):
        store.put(record(item))
        assert store.get(item) == record(item)
    assert [name for name, _ in store.items()] == sorted([ITEM.file_name, KEYS.file_name])
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.directory.iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_directory_that_others_can_write(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod"):
        Store(tmp_path)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(ConfigError):
            Store(path)


def test_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="another user"):
        Store(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put(record())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space"):
        store.put(record(url="https://y"))
    assert store.get(ITEM) == record() and len(list(tmp_path.iterdir())) == 1


def test_files_that_are_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = tmp_path / ITEM.file_name
    path.write_bytes(encode_record(record()))
    path.chmod(0o622)
    with pytest.raises(MalformedEvidence):
        store.get(ITEM)
    path.unlink()
    (tmp_path / "real").write_bytes(encode_record(record()))
    path.symlink_to(tmp_path / "real")
    with pytest.raises(MalformedEvidence):
        store.get(ITEM)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(MalformedEvidence):
        store.get(ITEM)


def test_a_file_under_another_items_name_is_not_taken(tmp_path: Path) -> None:
    """One issuer's keys must not become another's by renaming a file."""
    store, other = Store(tmp_path), Item("jwks", "https://other.example")
    store.put(record(KEYS))
    (tmp_path / KEYS.file_name).rename(tmp_path / other.file_name)
    with pytest.raises(MalformedEvidence, match="the file is of"):
        store.get(other)
    ((_, found),) = store.items()
    assert isinstance(found, MalformedEvidence)


def test_every_damage_of_a_record_is_found() -> None:
    raw = encode_record(record())
    assert decode_record(raw, ITEM) == record()
    for at in range(0, len(raw), 3):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        try:
            found = decode_record(changed, ITEM)
        except MalformedEvidence:
            continue
        assert found.body == record().body  # only url and time, which nothing protects, can differ
    for size in range(0, len(raw) - 2, 7):
        with pytest.raises(MalformedEvidence):
            decode_record(raw[:size], ITEM)


@pytest.mark.parametrize(
    "text",
    ["", "jwks", "jwks:", "jwks:ftp://x", "amd-crl:Rome", "amd-vcek:Milan/00/1.2.3.4", "intel-tcb-info:90C06F000000",
     "intel-tcb-info:90c06f000000\n", "other:x", "jwks:https://a/../../x\x00", "intel-pck-crl:root"],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(MalformedEvidence):
        parse_item(text)


def test_file_names_stay_in_the_directory_and_apart() -> None:
    keys = ["https://a.example", "https://a.example/", "https://a.example/..", "https://A.example", "http://a.example"]
    names = {Item("jwks", key).file_name for key in keys}
    assert len(names) == len(keys) and not any("/" in name or name.startswith(".") for name in names)
    vcek = Item("amd-vcek", f"Genoa/{'ab' * 64}/1.2.3.4").file_name
    assert vcek != Item("amd-vcek", f"Genoa/{'ab' * 64}/1.2.3.5").file_name and len(vcek) < 128


def test_times_of_a_key_set_and_of_a_list() -> None:
    keys, crl = check(record(KEYS)), check(record())
    at = record().fetched_at
    assert (keys.refresh_at, keys.end) == (at + 3600, at + 86_400) and keys.state(0) == "fresh"
    assert crl.start == intel.START.timestamp() and crl.end == intel.END.timestamp()
    assert crl.refresh_at == at + 86_400  # a day, because half of what is left is more
    assert [crl.state(t) for t in (crl.start - 1, crl.start, crl.refresh_at, crl.end)] == [
        "early", "fresh", "due", "expired",
    ]  # fmt: skip


def test_every_kind_has_a_bound_and_a_source() -> None:
    assert all(0 < kind.max_bytes <= 4 << 20 and kind.source for kind in KINDS.values())

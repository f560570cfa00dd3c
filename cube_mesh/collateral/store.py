"""The cache directory: a file an item, made whole under another name and then renamed, readable by its owner only.

Whoever can write here can put in a key set, which nobody has signed: a directory that group or others can write, or
that belongs to another user (root excepted), is refused. Two writers do no harm: the last whole file counts.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import msgspec

from attest.errors import MalformedEvidence
from attest.items import MAX_RECORD_BYTES, Item, Record, decode_record, encode_record, parse_item
from cube_mesh.errors import ConfigError

__all__ = ["Store"]

_TEMPORARY = ".new-"


class _Name(msgspec.Struct, frozen=True):
    item: str


class Store:
    """A cache in ``directory``. With ``create`` it is made, mode 0700. Raises ConfigError, also when it is not safe."""

    def __init__(self, directory: str | Path, *, create: bool = False) -> None:
        self.directory = Path(directory)
        try:
            if create:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = self.directory.stat()
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from None
        if not stat.S_ISDIR(about.st_mode):
            raise self._unusable("not a directory")
        if about.st_uid not in (os.geteuid(), 0):
            raise self._unusable("belongs to another user")
        if about.st_mode & 0o022:
            raise self._unusable("others can write it: chmod go-w")

    def get(self, item: Item) -> Record | None:
        """The record of ``item``; None when there is none. MalformedEvidence when it is damaged or another's."""
        raw = self._read(self.directory / item.file_name)
        return None if raw is None else decode_record(raw, item)

    def put(self, record: Record) -> None:
        """Keep ``record`` in place of an older one; it is on the disk when this returns. Raises ConfigError."""
        target = self.directory / parse_item(record.item).file_name
        temporary = self.directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(encode_record(record))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            self._sync()
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from None

    def items(self) -> tuple[tuple[str, Record | MalformedEvidence], ...]:
        """All files of the cache by name, each with its record or with what is wrong with it."""
        found: list[tuple[str, Record | MalformedEvidence]] = []
        for path in sorted(self.directory.glob("*.json")):
            try:
                raw = self._read(path)
                if raw is None:
                    continue
                found.append((path.name, decode_record(raw, _own_item(raw, path.name))))
            except MalformedEvidence as error:
                found.append((path.name, error))
        return tuple(found)

    def _read(self, path: Path) -> bytes | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MalformedEvidence(f"{path.name}: {error.strerror}", code="malformed_collateral") from None
        with open(descriptor, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_mode & 0o022:
                raise MalformedEvidence(f"{path.name}: no file of its owner's alone", code="malformed_collateral")
            return file.read(MAX_RECORD_BYTES + 1)

    def _sync(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _unusable(self, reason: str) -> ConfigError:
        return ConfigError(reason, key="collateral cache", where=str(self.directory))


def _own_item(raw: bytes, name: str) -> Item:
    """The item that a file says it is of, when that is also the item that its name stands for."""
    try:
        item = parse_item(msgspec.json.decode(raw, type=_Name).item)
    except msgspec.MsgspecError as error:
        raise MalformedEvidence(f"{name}: {error}", code="malformed_collateral") from None
    if item.file_name != name:
        raise MalformedEvidence(f"{name}: the file is of {item}", code="malformed_collateral")
    return item

"""What commands about evidence read from their command line: files of bounded size, and moments."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import typer

MAX_FILE_BYTES = 8 << 20  # larger than any evidence


def read_file(file: Path) -> bytes:
    """The file's bytes; a usage error for one that cannot be read or is too large."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise typer.BadParameter(f"{file}: above {MAX_FILE_BYTES} bytes")
    return raw


def moment_of(text: str | None) -> float:
    """``--now`` as Unix time; None is the clock's."""
    if text is None:
        return time.time()
    try:
        parsed = dt.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("is not an RFC 3339 time", param_hint="--now") from None
    if parsed.tzinfo is None:
        raise typer.BadParameter("has no time zone", param_hint="--now")
    return parsed.timestamp()

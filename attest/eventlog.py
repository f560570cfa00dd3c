"""Event logs of measured boot as events, and their replay. TCG PC Client Firmware Profile r1.06 §10; CCEL for TDX.

A log proves nothing by itself. Once its replay equals register values that a quote has proven, the *digests* in it are
proven too; an event's *data* only where :func:`unmatched_data` recomputes its digest. Little endian, strict, bounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import msgspec

from attest.errors import MalformedEvidence, VerificationFailed

__all__ = [
    "EV_EFI_ACTION",
    "EV_EFI_VARIABLE_BOOT",
    "EV_NO_ACTION",
    "EV_SEPARATOR",
    "EXIT_BOOT_SERVICES",
    "MAX_LOG_BYTES",
    "SHA384",
    "Event",
    "EventLog",
    "exited_boot_services",
    "parse_event_log",
    "prove",
    "replay",
    "secure_boot",
    "separators",
    "unmatched_data",
]

MAX_LOG_BYTES = 4 * 1024 * 1024
MAX_EVENTS = 16_384
MAX_ALGORITHMS = 8
MAX_INDEX = 31

EV_NO_ACTION, EV_SEPARATOR, EV_ACTION = 3, 4, 5
EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT = 0x80000001, 0x80000002
EV_EFI_GPT_EVENT, EV_EFI_ACTION = 0x80000006, 0x80000007
EXIT_BOOT_SERVICES = b"Exit Boot Services Returned with Success"

SHA1, SHA384 = 0x0004, 0x000C
_HASHES = {SHA1: "sha1", 0x000B: "sha256", SHA384: "sha384", 0x000D: "sha512"}
_SIZES = {SHA1: 20, 0x000B: 32, SHA384: 48, 0x000D: 64, 0x0012: 32}  # SM3: read, never replayed
_SPEC_ID, _STARTUP_LOCALITY = b"Spec ID Event03\x00", b"StartupLocality\x00"
_SEPARATORS = (bytes(4), b"\xff" * 4, b"\x01\x00\x00\x00")  # §10.4.1, the last one after an error
# Events whose digest is the hash of their data as logged (§10.4.1); of others the data describes what was hashed.
_DATA_IS_MEASURED = {EV_SEPARATOR, EV_ACTION, EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_GPT_EVENT, EV_EFI_ACTION}
_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


class Event(msgspec.Struct, frozen=True):
    """One event. ``index`` is a PCR; in a CCEL a measurement register: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3."""

    index: int
    type: int
    digests: dict[int, bytes]  # by TPM_ALG_ID
    data: bytes


class EventLog(msgspec.Struct, frozen=True):
    """A parsed log. ``algorithms``: those that each event has a digest of. ``locality`` starts PCR 0 (0, 3 or 4)."""

    algorithms: tuple[int, ...]
    events: tuple[Event, ...]
    locality: int = 0


def _malformed(what: str, code: str = "malformed_event_log") -> MalformedEvidence:
    return MalformedEvidence(f"event log: {what}", code=code)


class _Reader:
    __slots__ = ("_at", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._raw):
            raise _malformed("truncated, or a size above what is left", "event_log_truncated")
        data = self._raw[self._at : end]
        self._at = end
        return data

    def uint(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def at_padding(self) -> bool:
        """At the end, or before a rest of nothing but 0x00 or nothing but 0xFF: logs live in tables of fixed size."""
        left = len(self._raw) - self._at
        if left == 0:
            return True
        fill = self._raw[self._at : self._at + 1]
        # A real event may begin with zeros (PCR 0), never eight of them: that would be PCR 0, type 0.
        if fill not in (b"\x00", b"\xff") or self._raw[self._at : self._at + min(left, 8)].strip(fill):
            return False
        if self._raw.count(fill, self._at) != left:
            raise _malformed("bytes after its padding")
        return True


def parse_event_log(raw: bytes) -> EventLog:
    """A log in crypto-agile form, or in the older one of SHA-1 digests only, as its first event tells.

    Raises MalformedEvidence: too large (``oversize``), truncated (``event_log_truncated``), other digests than the
    header declares (``event_log_digests``), a second header, bytes after the padding (``malformed_event_log``).
    """
    if len(raw) > MAX_LOG_BYTES:
        raise _malformed(f"{len(raw)} bytes are above {MAX_LOG_BYTES}", "oversize")
    reader = _Reader(raw)
    first = _legacy_event(reader)
    agile = first.type == EV_NO_ACTION and first.data.startswith(_SPEC_ID)
    sizes = _declared(first.data) if agile else {SHA1: 20}
    events = [] if agile else [first]
    while not reader.at_padding():
        if len(events) == MAX_EVENTS:
            raise _malformed(f"more than {MAX_EVENTS} events", "oversize")
        events.append(_agile_event(reader, sizes) if agile else _legacy_event(reader))
    return EventLog(tuple(sizes), tuple(events), _locality(events))


def _legacy_event(reader: _Reader) -> Event:
    """TCG_PCClientPCREvent (§10.2.1)."""
    index, kind = _index(reader), reader.uint(4)
    digest = reader.take(20)
    return Event(index, kind, {SHA1: digest}, reader.take(reader.uint(4)))


def _index(reader: _Reader) -> int:
    index = reader.uint(4)
    if index > MAX_INDEX and index != 0xFFFFFFFF:  # some firmware logs EV_NO_ACTION to no register
        raise _malformed(f"register {index}")
    return index


def _declared(data: bytes) -> dict[int, int]:
    """Algorithms and digest sizes of TCG_EfiSpecIDEvent (§10.4.5.1)."""
    reader = _Reader(data)
    reader.take(24)  # signature, platform class, versions, uintn size
    count = reader.uint(4)
    if not 1 <= count <= MAX_ALGORITHMS:
        raise _malformed(f"{count} algorithms", "event_log_digests")
    pairs = [(reader.uint(2), reader.uint(2)) for _ in range(count)]
    sizes = dict(pairs)
    if len(sizes) != count or any(_SIZES.get(alg) != size for alg, size in pairs):
        raise _malformed("algorithms declared twice, unknown or with a wrong digest size", "event_log_digests")
    return sizes


def _agile_event(reader: _Reader, sizes: dict[int, int]) -> Event:
    """TCG_PCR_EVENT2 (§10.2.2)."""
    index, kind, count = _index(reader), reader.uint(4), reader.uint(4)
    if count != len(sizes):
        raise _malformed(f"an event with {count} digests where {len(sizes)} are declared", "event_log_digests")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        alg = reader.uint(2)
        if alg not in sizes or alg in digests:
            raise _malformed(f"digest of algorithm {alg:#06x} undeclared or twice", "event_log_digests")
        digests[alg] = reader.take(sizes[alg])
    data = reader.take(reader.uint(4))
    if kind == EV_NO_ACTION and data.startswith(_SPEC_ID):
        raise _malformed("a second header")
    return Event(index, kind, digests, data)


def _locality(events: Iterable[Event]) -> int:
    """§10.4.5.3: the locality that TPM2_Startup came from; nothing may have been measured into PCR 0 before."""
    found = 0
    measured = False
    for event in events:
        if event.type == EV_NO_ACTION and event.data.startswith(_STARTUP_LOCALITY):
            if measured or found or len(event.data) != 17 or event.data[16] not in (0, 3, 4):
                raise _malformed("StartupLocality twice, late or out of range")
            found = event.data[16]
        elif event.index == 0 and event.type != EV_NO_ACTION:
            measured = True
    return found


def replay(log: EventLog, bank: int) -> dict[int, bytes]:
    """The value that each measured register of ``bank`` (TPM_ALG_ID) ends with; registers without an event are absent.

    Registers start as zeros, PCR 0 with the startup locality as its last byte; PCR 17 to 22 start as ones until a
    dynamic launch and are not replayed here. Raises MalformedEvidence for a bank that the log does not have.
    """
    name = _HASHES.get(bank)
    if name is None or bank not in log.algorithms:
        raise _malformed(f"no digests of algorithm {bank:#06x}", "event_log_bank")
    size = _SIZES[bank]
    values: dict[int, bytes] = {}
    for event in log.events:
        if event.type == EV_NO_ACTION or event.index > MAX_INDEX:
            continue
        start = values.get(event.index)
        if start is None:
            start = bytes(size - 1) + bytes((log.locality,)) if event.index == 0 else bytes(size)
        values[event.index] = hashlib.new(name, start + event.digests[bank]).digest()
    return values


def prove(log: EventLog, bank: int, quoted: Mapping[int, bytes], name: Callable[[int], str]) -> EventLog:
    """The events that were extended into the registers of ``quoted``, whose values a quote has proven; all others are
    dropped, because nothing vouches for them. A register without an event must have the zeros that it starts with.

    ``name``: a register's own, for the error. Raises what :func:`replay` does, and VerificationFailed: no event of
    these registers (``event_log_empty``), other values than theirs (``event_log_replay``), data of another digest where
    the event's type says that its data was hashed (``event_log_data``).
    """
    values = replay(log, bank)
    if not values.keys() & quoted.keys():
        raise VerificationFailed("the event log measures none of the quoted registers", code="event_log_empty")
    wrong = [name(index) for index in quoted if values.get(index, bytes(_SIZES[bank])) != quoted[index]]
    if wrong:
        raise VerificationFailed(f"the event log does not replay to {', '.join(wrong)}", code="event_log_replay")
    events = tuple(event for event in log.events if event.index in quoted and event.type != EV_NO_ACTION)
    proven = EventLog(log.algorithms, events, log.locality)
    unmatched = unmatched_data(proven, bank)
    if unmatched:
        raise VerificationFailed(f"events {unmatched[:8]} have data of another digest", code="event_log_data")
    return proven


def unmatched_data(log: EventLog, bank: int) -> tuple[int, ...]:
    """Positions of events whose type says that their data was hashed, and whose digest is of something else."""
    name = _HASHES[bank]
    return tuple(
        position
        for position, event in enumerate(log.events)
        if event.type in _DATA_IS_MEASURED and hashlib.new(name, event.data).digest() != event.digests[bank]
    )


def separators(log: EventLog, index: int, bank: int) -> tuple[int, ...]:
    """Positions of a register's separators: firmware writes exactly one into each of PCR 0 to 7.

    Known by type *or* digest. Nobody signs an event's type, so one that goes by another name must not be overlooked.
    """
    digests = {hashlib.new(_HASHES[bank], value).digest() for value in _SEPARATORS}
    return tuple(
        position
        for position, event in enumerate(log.events)
        if event.index == index and event.type != EV_NO_ACTION
        if event.type == EV_SEPARATOR or event.digests[bank] in digests
    )


def exited_boot_services(log: EventLog) -> bool:
    """Whether firmware logged that the operating system took over; without it, the log ends inside of the firmware."""
    return any(event.type == EV_EFI_ACTION and event.data == EXIT_BOOT_SERVICES for event in log.events)


def secure_boot(log: EventLog, index: int, bank: int) -> bool | None:
    """Value of the first UEFI variable SecureBoot measured into register ``index`` (PCR 7, in a CCEL 1) before its
    separator, None when none was: behind it, an operating system may measure what it likes. The data is the host's word
    until replay and :func:`unmatched_data` have proven it.
    """
    name = "SecureBoot".encode("utf-16-le")
    head = _GLOBAL_VARIABLE + len("SecureBoot").to_bytes(8, "little")
    end = next(iter(separators(log, index, bank)), 0)
    for event in log.events[:end]:
        named = event.data[:24] == head and event.data[32:52] == name
        if event.index == index and event.type == EV_EFI_VARIABLE_DRIVER_CONFIG and named:
            return event.data[24:32] == (1).to_bytes(8, "little") and event.data[52:] == b"\x01"
    return None

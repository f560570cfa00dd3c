"""An event log beside a verified quote: what its registers were measured from. The log is proven by replay, no more."""

from __future__ import annotations

import msgspec

from attest.errors import VerificationFailed
from attest.eventlog import (
    EV_EFI_VARIABLE_BOOT,
    EV_NO_ACTION,
    EventLog,
    parse_event_log,
    prove,
    secure_boot,
    separators,
)
from attest.schemes.vtpm.abi import BANK_NAMES
from attest.schemes.vtpm.verify import VerifiedQuote

__all__ = ["VerifiedLog", "verify_event_log"]

_FIRMWARE_PCRS = range(8)
_BOOT_VARIABLES_PCR, _SECURE_BOOT_PCR = 1, 7
_PREFERRED = ("sha512", "sha384", "sha256", "sha1")


class VerifiedLog(msgspec.Struct, frozen=True):
    """What a log says of quoted PCRs of ``bank``. ``covered``: PCRs that it explains completely. ``proven``: the events
    that were extended into those; all others were dropped, because nothing vouches for them. ``unseparated``: PCRs
    of the firmware (0 to 7) among them without the separator that says where the firmware's part ends.
    """

    proven: EventLog
    bank: str
    covered: tuple[int, ...]
    unseparated: tuple[int, ...]

    def digests(self, index: int) -> tuple[str, ...]:
        """Hex digests that were extended into a covered PCR, in order."""
        alg = _ALGORITHMS[self.bank]
        return tuple(event.digests[alg].hex() for event in self.proven.events if event.index == index)

    @property
    def secure_boot(self) -> bool:
        """Whether firmware measured that secure boot is on."""
        return secure_boot(self.proven, _SECURE_BOOT_PCR, _ALGORITHMS[self.bank]) is True


_ALGORITHMS = {name: alg for alg, name in BANK_NAMES.items()}


def verify_event_log(raw_log: bytes, quote: VerifiedQuote) -> VerifiedLog:
    """Replay a log against the strongest bank that both have; every PCR in both must agree.

    Also: data whose type says that it was hashed gives its digest, and no PCR from 0 to 7 has two separators, whatever
    type the log gives them. Raises MalformedEvidence, or VerificationFailed with ``event_log_bank``,
    ``event_log_empty``, ``event_log_replay``, ``event_log_data`` or ``event_log_separator``. Not checked: which events
    are wanted (``appraise``).
    """
    log = parse_event_log(raw_log)
    bank = next((n for n in _PREFERRED if quote.pcrs.get(n) and _ALGORITHMS[n] in log.algorithms), None)
    if bank is None:
        raise VerificationFailed("no bank is both quoted and logged", code="event_log_bank")
    alg = _ALGORITHMS[bank]
    quoted = quote.pcrs[bank]
    measured = {event.index for event in log.events if event.type != EV_NO_ACTION}
    covered = tuple(sorted(measured & quoted.keys()))
    proven = prove(log, alg, {index: bytes.fromhex(quoted[index]) for index in covered}, "PCR {}".format)
    counts = {index: _separators(proven, index, alg) for index in covered if index in _FIRMWARE_PCRS}
    twice = [index for index, count in counts.items() if count > 1]
    if twice:
        raise VerificationFailed(f"PCR {twice} has more than one separator", code="event_log_separator")
    return VerifiedLog(proven, bank, covered, tuple(index for index, count in counts.items() if not count))


def _separators(proven: EventLog, index: int, alg: int) -> int:
    """How many a PCR has. In PCR 1, the boot order 1, 0 is no separator: firmware hashes its two numbers alone, which
    are the bytes of a separator after an error.
    """
    found = [proven.events[position] for position in separators(proven, index, alg)]
    return sum(index != _BOOT_VARIABLES_PCR or event.type != EV_EFI_VARIABLE_BOOT for event in found)

"""A CCEL event log beside a verified quote: what its RTMRs were measured from. The log is proven by replay, no more.

UEFI 2.10 §38.4.1: register 1 to 4 of the log are RTMR0 to RTMR3, which SHA-384 extends. Register 0 is MRTD, which the
TDX module measures in its own way, so that no log replays to it. Firmware measures its variables into RTMR0 (a TPM's
PCR 1 and 7), boot loaders and its own end into RTMR1 (PCR 2 to 6); RTMR2 and RTMR3 are the operating system's.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from attest.errors import VerificationFailed
from attest.eventlog import SHA384, EventLog, exited_boot_services, parse_event_log, prove, replay, secure_boot
from attest.schemes.tdx.abi import TdReport

__all__ = ["VerifiedLog", "explained", "verify_event_log"]

_FIRST = 1  # the register that RTMR0 is
_VARIABLES = _FIRST  # where firmware measures SecureBoot


class VerifiedLog(msgspec.Struct, frozen=True):
    """What a log says of ``rtmrs``, which it explains completely. ``proven``: the events that were extended into those;
    all others were dropped, because nothing vouches for them.
    """

    proven: EventLog
    rtmrs: tuple[int, ...]

    def digests(self, rtmr: int) -> tuple[str, ...]:
        """Hex digests that were extended into one of ``rtmrs``, in order."""
        return tuple(e.digests[SHA384].hex() for e in self.proven.events if e.index == rtmr + _FIRST)

    @property
    def secure_boot(self) -> bool:
        """Whether firmware measured that secure boot is on, before the first separator of RTMR0.

        Firmware measures several separators there, or what looks like one (the boot order 1, 0), so that their number
        tells nothing. The first is found by its digest, whatever type it is given, and nothing behind it counts.
        """
        return secure_boot(self.proven, _VARIABLES, SHA384) is True

    @property
    def exited_boot_services(self) -> bool:
        """Whether firmware measured that the operating system took over."""
        return exited_boot_services(self.proven)


def verify_event_log(raw_log: bytes, report: TdReport, rtmrs: Iterable[int]) -> VerifiedLog:
    """Replay a log to each of ``rtmrs`` (0 to 3) of a verified report; one that has no event must be zeros.

    Raises MalformedEvidence, or VerificationFailed with ``event_log_bank`` (no SHA-384), ``event_log_empty``,
    ``event_log_replay`` or ``event_log_data``. Not checked: which events are wanted (``appraise``), events of other
    registers, which count for nothing.
    """
    log = _parsed(raw_log)
    wanted = tuple(sorted(rtmrs))
    quoted = {rtmr + _FIRST: getattr(report, f"rtmr{rtmr}") for rtmr in wanted}
    return VerifiedLog(prove(log, SHA384, quoted, lambda index: f"RTMR{index - _FIRST}"), wanted)


def explained(raw_log: bytes, report: TdReport) -> tuple[int, ...]:
    """The RTMRs (0 to 3) that a log gives: those of which a policy can ask it. Raises as :func:`verify_event_log`."""
    values = replay(_parsed(raw_log), SHA384)
    return tuple(n for n in range(4) if values.get(n + _FIRST, bytes(48)) == getattr(report, f"rtmr{n}"))


def _parsed(raw_log: bytes) -> EventLog:
    log = parse_event_log(raw_log)
    if SHA384 not in log.algorithms:
        raise VerificationFailed("the event log has no SHA-384, which RTMRs are extended by", code="event_log_bank")
    return log

"""Event logs, written by the testkit and by real firmware: structure, replay, and lies about either."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attest.errors import MalformedEvidence, VerificationFailed
from attest.eventlog import (
    MAX_LOG_BYTES,
    exited_boot_services,
    parse_event_log,
    prove,
    replay,
    secure_boot,
    separators,
    unmatched_data,
)
from attest.schemes.vtpm.abi import Alg
from attest.testkit.eventlog import GOOD_BOOT, agile_log, event, header, legacy_log, secure_boot_data

GOOD = agile_log()
ONE = event(0, 4, bytes(4))


def test_a_good_log() -> None:
    log = parse_event_log(GOOD)
    assert len(log.events) == len(GOOD_BOOT) and log.algorithms == (Alg.SHA256,)
    assert exited_boot_services(log) and not unmatched_data(log, Alg.SHA256)
    assert [separators(log, index, Alg.SHA256) for index in range(8)] == [(position,) for position in range(2, 10)]


VARIABLE, OFF = secure_boot_data(), secure_boot_data(b"\x00")
NAMED_OTHERWISE = VARIABLE.replace("SecureBoot".encode("utf-16-le"), "SecureBook".encode("utf-16-le"))
END = event(7, 4, bytes(4))
SECURE_BOOT = {
    "on": (event(7, 0x80000001, VARIABLE) + END, True),
    "off": (event(7, 0x80000001, OFF) + END, False),
    "off, then on": (event(7, 0x80000001, OFF) + event(7, 0x80000001, VARIABLE) + END, False),
    "two bytes": (event(7, 0x80000001, secure_boot_data(b"\x01\x01")) + END, False),
    "another variable": (event(7, 0x80000001, NAMED_OTHERWISE) + END, None),
    "another register": (event(6, 0x80000001, VARIABLE) + END, None),
    "another type": (event(7, 0x80000002, VARIABLE) + END, None),
    "behind the separator": (END + event(7, 0x80000001, VARIABLE), None),
    "no separator": (event(7, 0x80000001, VARIABLE), None),
}


@pytest.mark.parametrize("case", SECURE_BOOT)
def test_secure_boot_is_what_firmware_measured(case: str) -> None:
    events, value = SECURE_BOOT[case]
    assert secure_boot(parse_event_log(header() + events), 7, Alg.SHA256) is value


@pytest.mark.parametrize("value", [bytes(4), b"\xff" * 4, b"\x01\x00\x00\x00"])
@pytest.mark.parametrize("kind", [4, 13])
def test_a_separator_by_another_name_is_one(value: bytes, kind: int) -> None:
    raw = header() + event(7, kind, value) + event(7, 3, value) + event(6, 4, value) + event(7, 4, b"data")
    assert separators(parse_event_log(raw), 7, Alg.SHA256) == (0, 3)


def test_padding_is_no_event() -> None:
    whole = parse_event_log(GOOD)
    for fill in (b"\x00", b"\xff"):
        for count in (1, 7, 8, 4096):
            assert parse_event_log(GOOD + fill * count) == whole
        with pytest.raises(MalformedEvidence):
            parse_event_log(GOOD + fill * 64 + b"\x01")


def test_the_older_form() -> None:
    log = parse_event_log(legacy_log())
    assert log.algorithms == (Alg.SHA1,) and len(log.events) == len(GOOD_BOOT)
    with pytest.raises(MalformedEvidence):
        replay(log, Alg.SHA256)


def test_startup_locality_and_events_that_are_not_extended() -> None:
    locality = b"StartupLocality\x00\x03"
    raw = header() + event(0, 3, locality) + event(0xFFFFFFFF, 3, b"note") + ONE
    log = parse_event_log(raw)
    assert log.locality == 3 and replay(log, Alg.SHA256) != replay(parse_event_log(header() + ONE), Alg.SHA256)
    for bad in (
        event(0, 3, locality) * 2 + ONE,
        ONE + event(0, 3, locality),
        event(0, 3, b"StartupLocality\x00\x01"),
        event(0, 3, locality + b"\x00"),
    ):
        with pytest.raises(MalformedEvidence):
            parse_event_log(header() + bad)


TWICE = event(0, 4, b"", count=2)[:-4] + event(0, 4, b"")[12:]
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "event_log_truncated"),
    "oversize": (b"\xff" * (MAX_LOG_BYTES + 1), "oversize"),
    "too many events": (header() + ONE * 16_385, "oversize"),
    "digest count 2^32-1": (header() + event(0, 4, b"", count=0xFFFFFFFF), "event_log_digests"),
    "digest count zero": (header() + event(0, 4, b"", count=0), "event_log_digests"),
    "event size 2^32-1": (header() + event(0, 4, b"data", size=0xFFFFFFFF), "event_log_truncated"),
    "event size above the rest": (header() + event(0, 4, b"data", size=5), "event_log_truncated"),
    "undeclared algorithm": (header() + event(0, 4, b"", algorithms=(Alg.SHA384,)), "event_log_digests"),
    "algorithm twice": (header((Alg.SHA256, Alg.SHA384)) + TWICE, "event_log_digests"),
    "register 32": (header() + event(32, 4, b""), "malformed_event_log"),
    "second header": (header() + event(0, 3, b"Spec ID Event03\x00" + bytes(20)), "malformed_event_log"),
    "no algorithm": (header((), count=0), "event_log_digests"),
    "nine algorithms": (header((), count=9), "event_log_digests"),
    "algorithm declared twice": (header((Alg.SHA256, Alg.SHA256)), "event_log_digests"),
    "digest size of another": (header().replace(b"\x0b\x00\x20\x00", b"\x0b\x00\x14\x00"), "event_log_digests"),
    "unknown algorithm": (header().replace(b"\x0b\x00\x20\x00", b"\x99\x00\x20\x00"), "event_log_digests"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    raw, code = MALFORMED[name]
    with pytest.raises(MalformedEvidence) as caught:
        parse_event_log(raw)
    assert caught.value.code == code, caught.value


def test_every_truncation_is_malformed_or_ends_between_events() -> None:
    ends = {len(GOOD)}
    log = b""
    for item in GOOD_BOOT:
        ends.add(len(header()) + len(log))
        log += event(*item)
    for length in range(len(GOOD)):
        start = max(end for end in ends if end <= length) if length >= len(header()) else 0
        if length >= len(header()) and not any(GOOD[start:length]):  # nothing, or zeros that may be padding
            parse_event_log(GOOD[:length])
            continue
        with pytest.raises(MalformedEvidence):
            parse_event_log(GOOD[:length])


def _proven(quoted: dict[int, bytes], raw: bytes = GOOD) -> tuple[int, ...]:
    return tuple(e.index for e in prove(parse_event_log(raw), Alg.SHA256, quoted, "R{}".format).events)


def test_quoted_values_prove_their_events_and_no_others() -> None:
    values = replay(parse_event_log(GOOD), Alg.SHA256)
    assert set(_proven(values)) == set(range(8)) and set(_proven({7: values[7], 4: values[4]})) == {4, 7}
    assert set(_proven({7: values[7], 9: bytes(32)})) == {7}  # nothing measured: as it started
    noted = GOOD + event(7, 3, b"note")
    assert _proven({7: values[7]}, noted) == _proven({7: values[7]})


@pytest.mark.parametrize(
    ("quoted", "code", "words"),
    [
        ({}, "event_log_empty", "none of the quoted"),
        ({9: bytes(32)}, "event_log_empty", "none of the quoted"),
        ({7: bytes(32)}, "event_log_replay", "does not replay to R7$"),
        ({7: bytes(32), 0: None, 9: b"\x01" * 32}, "event_log_replay", "does not replay to R7, R9$"),
    ],
)
def test_values_that_the_log_does_not_give(quoted: dict[int, bytes | None], code: str, words: str) -> None:
    values = replay(parse_event_log(GOOD), Alg.SHA256)
    with pytest.raises(VerificationFailed, match=words) as caught:
        _proven({index: value or values[index] for index, value in quoted.items()})
    assert caught.value.code == code


def test_data_of_another_digest_proves_nothing() -> None:
    lying = header() + event(7, 4, b"data", digests={Alg.SHA256: bytes(32)})
    with pytest.raises(VerificationFailed) as caught:
        _proven(replay(parse_event_log(lying), Alg.SHA256), lying)
    assert caught.value.code == "event_log_data"


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
@settings(max_examples=300)
def test_any_bytes(raw: bytes, at: int) -> None:
    for candidate in (raw, GOOD[:at] + raw + GOOD[at:]):
        try:
            log = parse_event_log(candidate)
        except MalformedEvidence:
            continue
        for bank in log.algorithms:
            replay(log, bank) if bank != 0x12 else None


# -- real firmware -----------------------------------------------------------------------------------------------------

# Manifest: number of events with the header, and how PCR 0 of the SHA-256 (or only) bank begins.
REAL = {
    "arch-linux-workstation.bin": (25, "758b773d94feabf5"),
    "cos-93-amd-sev.bin": (46, "0f35c214608d93c7"),
    "crypto_agile_eventlog": (27, "1536de221b2187a4"),
    "debian-10.bin": (25, "0f2d3a2a1adaa479"),
    "eventlogwithsp800155.bin": (54, "d0c70a9310cd0b55"),
    "sb_cert_eventlog": (15, "fcecb56acc303862"),
    "short_no_action_eventlog": (1, ""),
    "ubuntu-2104-no-dbx.bin": (112, "24af52a4f429b71a"),
    "ubuntu-2104-no-secure-boot.bin": (106, "24af52a4f429b71a"),
}


def test_real_logs_replay_to_the_manifests_values(vectors: Path) -> None:
    files = sorted(path.name for path in (vectors / "vtpm" / "eventlogs").iterdir())
    assert files == sorted(REAL)
    for name, (count, pcr0) in REAL.items():
        log = parse_event_log((vectors / "vtpm" / "eventlogs" / name).read_bytes())
        agile = name not in ("debian-10.bin", "short_no_action_eventlog")
        assert len(log.events) + agile == count, name
        bank = Alg.SHA256 if Alg.SHA256 in log.algorithms else Alg.SHA1
        assert replay(log, bank).get(0, b"").hex().startswith(pcr0), name
        for algorithm in log.algorithms:
            assert not unmatched_data(log, algorithm), name
    for name, count in (("binary_bios_measurements12", 162), ("binary_bios_measurements20", 136)):
        log = parse_event_log((vectors / "vtpm" / "trustauthority" / name).read_bytes())
        assert len(log.events) + (Alg.SHA256 in log.algorithms) == count


def test_real_ccel_logs_replay_to_real_quotes(vectors: Path) -> None:
    from attest.schemes.tdx.abi import parse_quote

    for log_file, quote_file, registers in (
        ("go-tdx-guest-ccel/ccel_data.dat", "go-tdx-guest-ccel/cos-113-tdx-quote.dat", (0, 1, 2)),
        ("attestation-rs/tdx_ccel_live.bin", "attestation-rs/tdx_quote_live.dat", (0, 1)),  # RTMR2 went on
    ):
        log = parse_event_log((vectors / "tdx" / log_file).read_bytes())
        report = parse_quote((vectors / "tdx" / quote_file).read_bytes()).report
        values = replay(log, Alg.SHA384)
        for register in registers:
            assert values[register + 1] == getattr(report, f"rtmr{register}"), (log_file, register)


def test_the_windows_machine_replays_to_its_sha1_quote(vectors: Path) -> None:
    dump = json.loads((vectors / "vtpm" / "go-attestation" / "windows_gcp_shielded_vm.json").read_text())
    values = replay(parse_event_log(base64.b64decode(dump["Log"]["Raw"])), Alg.SHA1)
    quoted = {pcr["Index"]: base64.b64decode(pcr["Digest"]) for pcr in dump["Log"]["PCRs"]}
    assert sorted(values) == [0, 4, 5, 7, 11, 12, 13, 14]
    assert all(quoted[index] == value for index, value in values.items())

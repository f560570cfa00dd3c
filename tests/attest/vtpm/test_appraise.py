"""Rules for quotes and event logs, SHA-1 only by name, and the real machine that has nothing better."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from attest.errors import AttestError, PolicyFormatError
from attest.eventlog import parse_event_log, replay
from attest.policy import parse_policy
from attest.schemes.vtpm.abi import Alg, QuotePart, encode_quote_part, parse_signature
from attest.schemes.vtpm.appraise import ReferenceValues, Rules, appraise_quote, log_claims_of
from attest.schemes.vtpm.eventlog import VerifiedLog, verify_event_log
from attest.schemes.vtpm.verify import VerifiedQuote, verify_quote, verify_quote_by_key
from attest.testkit.eventlog import GOOD_BOOT, agile_log, secure_boot_data
from attest.testkit.tokens import fixed_key
from attest.testkit.tpm import SoftwareTpm

HASH = bytes(range(32))
LOG = agile_log()
RULES: dict[str, Any] = {"pcrs": (0, 4), "unsafe_any_ak": True}
PCR0 = replay(parse_event_log(LOG), Alg.SHA256)[0].hex()
EVENTS4 = tuple(hashlib.sha256(data).hexdigest() for index, _, data in GOOD_BOOT if index == 4)
REFERENCE = ReferenceValues(pcr_values={"0": (PCR0,)}, event_digests={"4": EVENTS4})


def _seen(raw: bytes = LOG, indexes: range = range(8)) -> tuple[VerifiedQuote, VerifiedLog]:
    tpm = SoftwareTpm(pcrs={Alg.SHA256: indexes})
    values = replay(parse_event_log(raw), Alg.SHA256)
    tpm.pcrs[Alg.SHA256] |= {index: values[index] for index in indexes if index in values}
    quote = verify_quote(tpm.quote(HASH), HASH)
    return quote, verify_event_log(raw, quote)


def _codes(rules: Rules, reference: ReferenceValues, quote: VerifiedQuote, log: VerifiedLog | None) -> list[str]:
    return [mismatch.code for mismatch in appraise_quote(quote, rules, reference, log)]


def test_values_and_events() -> None:
    quote, log = _seen()
    strict = Rules(**RULES, require_event_log=True, require_secure_boot=True, require_exit_boot_services=True)
    assert _codes(strict, REFERENCE, quote, log) == []
    assert log_claims_of(log) == {
        "eventlog.bank": "sha256", "eventlog.pcrs": "0, 1, 2, 3, 4, 5, 6, 7", "eventlog.secure_boot": "true",
        "eventlog.exit_boot_services": "true",
    }  # fmt: skip
    assert "eventlog.secure_boot" not in log_claims_of(_seen(indexes=range(7))[1])
    assert _codes(Rules(**RULES), REFERENCE, quote, None) == ["event_log_missing"]
    assert _codes(strict, REFERENCE, quote, None) == ["event_log_missing", "event_log_missing"]
    fewer = ReferenceValues(pcr_values={"0": (PCR0,)}, event_digests={"4": EVENTS4[:1]})
    assert _codes(strict, fewer, quote, log) == ["event"]
    other = Rules(**{**RULES, "pcr_bank": "sha384"})
    assert _codes(other, REFERENCE, quote, log) == ["pcr_selection", "pcr_selection"]


@pytest.mark.parametrize(
    ("events", "indexes", "code"),
    [
        ([GOOD_BOOT[0], (7, 0x80000001, secure_boot_data(b"\x00")), *GOOD_BOOT[2:]], range(8), "secure_boot"),
        ([GOOD_BOOT[0], (6, 0x80000001, secure_boot_data()), *GOOD_BOOT[2:]], range(8), "secure_boot"),
        (GOOD_BOOT, range(7), "secure_boot"),
        (GOOD_BOOT[:-1], range(8), "exit_boot_services"),
        (GOOD_BOOT, (0, 4, 7), "exit_boot_services"),
        ([event for event in GOOD_BOOT if event[:2] != (0, 4)], range(8), "event_log_separator"),
    ],
    ids=["off", "in another PCR", "PCR 7 not quoted", "still in firmware", "PCR 5 not quoted", "open end"],
)
def test_what_the_log_must_show(events: Any, indexes: Any, code: str) -> None:
    quote, log = _seen(agile_log(events), indexes)
    rules = Rules(
        pcrs=(0,), unsafe_any_ak=True, unsafe_any_pcr_values=True, require_secure_boot=True,
        require_exit_boot_services=True,
    )  # fmt: skip
    assert _codes(rules, ReferenceValues(), quote, log) == [code]


@pytest.mark.parametrize(
    "text",
    [
        '[reference_values.vtpm.pcr_values]\n0 = ["' + "0" * 64 + '"]\n[reference_values.vtpm.event_digests]\n0 = ["'
        + "0" * 64 + '"]\n',
        '[reference_values.vtpm.event_digests]\n1 = ["' + "0" * 64 + '"]\n',
    ],
    ids=["both ways for one PCR", "a PCR that no rule names"],
)  # fmt: skip
def test_policies_that_cannot_be(text: str) -> None:
    head = 'id = "p"\nunsafe_accept_vtpm_only = true\n[vtpm]\npcrs = [0]\nunsafe_any_ak = true\n'
    with pytest.raises(PolicyFormatError):
        parse_policy(head + text)
    parse_policy(head + '[reference_values.vtpm.event_digests]\n0 = ["' + "0" * 64 + '"]\n')


def test_sha1_only_by_name() -> None:
    tpm = SoftwareTpm(pcrs={Alg.SHA1: (0,)}, hash_alg=Alg.SHA1)
    quote = verify_quote(tpm.quote(HASH), HASH, unsafe_allow_sha1=True)
    rules = {"pcrs": (0,), "pcr_bank": "sha1", "unsafe_any_pcr_values": True, "unsafe_any_ak": True}
    assert quote.weak and _codes(Rules(**rules), ReferenceValues(), quote, None) == ["sha1"]  # type: ignore[arg-type]
    allowed = Rules(**rules, unsafe_allow_sha1=True)  # type: ignore[arg-type]
    assert _codes(allowed, ReferenceValues(), quote, None) == []
    strong = SoftwareTpm(pcrs={Alg.SHA256: (0,)})
    assert not verify_quote(strong.quote(HASH), HASH, unsafe_allow_sha1=True).weak


def test_the_windows_machine_that_has_only_sha1(vectors: Path) -> None:
    dump = json.loads((vectors / "vtpm" / "go-attestation" / "windows_gcp_shielded_vm.json").read_text())
    values = {pcr["Index"]: base64.b64decode(pcr["Digest"]) for pcr in dump["Log"]["PCRs"]}
    attest, signature = (base64.b64decode(dump["Quote"][name]) for name in ("Quote", "Signature"))
    part = QuotePart(attest, signature, base64.b64decode(dump["AK"]["Public"]), {Alg.SHA1: values})
    quote = verify_quote(encode_quote_part(part), b"", unsafe_allow_sha1=True)
    log = verify_event_log(base64.b64decode(dump["Log"]["Raw"]), quote)
    assert quote.weak and log.covered == (0, 4, 5, 7, 11, 12, 13, 14) and 0 in log.unseparated
    rules = Rules(pcrs=(0, 4), pcr_bank="sha1", unsafe_any_pcr_values=True, unsafe_any_ak=True, unsafe_allow_sha1=True)
    assert _codes(rules, ReferenceValues(), quote, log) == ["event_log_separator"]
    lax = Rules(
        **{name: getattr(rules, name) for name in rules.__struct_fields__} | {"unsafe_allow_no_separator": True}
    )
    assert _codes(lax, ReferenceValues(), quote, log) == []


# -- a bare key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tpm", "code"),
    [
        (SoftwareTpm(), None),
        (SoftwareTpm(key=fixed_key()), None),
        (SoftwareTpm(key=fixed_key("weak")), "ak_algorithm"),
        (SoftwareTpm(pcrs={Alg.SHA1: (0,)}), "pcr_bank"),
        (SoftwareTpm(hash_alg=Alg.SHA1), "signature_algorithm"),
    ],
)
def test_quotes_by_key(tpm: SoftwareTpm, code: str | None) -> None:
    from attest.schemes.vtpm.abi import decode_quote_part

    part = decode_quote_part(tpm.quote(HASH))
    key: Any = tpm.key.public_key()
    arguments: Any = (part.attest, parse_signature(part.signature), key, part.pcrs)
    if code is None:
        assert verify_quote_by_key(*arguments, HASH).ak_name == ""
        for nonce in (b"", HASH[:-1], HASH[::-1]):
            with pytest.raises(AttestError, match="extraData"):
                verify_quote_by_key(*arguments, nonce)
        other: Any = SoftwareTpm(b"other").key.public_key()
        with pytest.raises(AttestError):
            verify_quote_by_key(part.attest, parse_signature(part.signature), other, part.pcrs, HASH)
        return
    with pytest.raises(AttestError) as caught:
        verify_quote_by_key(*arguments, HASH)
    assert caught.value.code == code

"""Quotes, AKs and event logs: every negative case, by its name, in which that alone is wrong.

Through the same door as ``attest verify``: evidence in files, a policy that pins AK and values, one verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.eventlog import parse_event_log, replay
from attest.offline import Case, judge
from attest.policy import parse_policy
from attest.schemes.vtpm.abi import BANK_NAMES, Alg, decode_quote_part
from attest.schemes.vtpm.verify import ak_name
from attest.testkit.eventlog import GOOD_BOOT, agile_log, event, header, secure_boot_data
from attest.testkit.tokens import certificate, fixed_key
from attest.testkit.tpm import AK_ATTRIBUTES, SoftwareTpm

NOW = 1_800_000_000.0
HASH = bytes(range(32))
LOG = agile_log()
Boot = Sequence[tuple[int, int, bytes]]


def _tpm(log: bytes = LOG, seed: bytes = b"software tpm", **arguments: Any) -> SoftwareTpm:
    """A TPM whose SHA-256 PCRs are what ``log`` gives."""
    tpm = SoftwareTpm(seed, **arguments)
    values = tpm.pcrs[Alg.SHA256]
    values.update({i: v for i, v in replay(parse_event_log(log), Alg.SHA256).items() if i in values})
    return tpm


TPM, OTHER = _tpm(), _tpm(seed=b"another")
PART = decode_quote_part(TPM.quote(HASH))
PCRS = TPM.pcrs[Alg.SHA256]
HEAD = 'id = "p"\nunsafe_accept_vtpm_only = true\n[vtpm]\npcrs = [0, 4, 7]\n'
ASKS_LOG = "require_event_log = true\nrequire_secure_boot = true\nrequire_exit_boot_services = true\n"
AK = f'[reference_values.vtpm]\nak_names = ["{ak_name(TPM.public())}"]\n'
VALUES = "[reference_values.vtpm.pcr_values]\n" + "".join(f'{i} = ["{PCRS[i].hex()}"]\n' for i in (0, 4, 7))
STRICT = parse_policy(HEAD + ASKS_LOG + AK + VALUES)
# A machine that booted otherwise has other values: of its log alone is judged.
LOGGED = parse_policy(HEAD + ASKS_LOG + "unsafe_any_pcr_values = true\n" + AK)
CA_KEY = fixed_key("service-other")
CA = certificate("ca", CA_KEY, ca=True).public_bytes(Encoding.PEM).decode()
CERTIFIED = parse_policy(HEAD + f'[reference_values.vtpm]\nak_roots = ["""{CA}"""]\n' + VALUES)


def _case(tpm: SoftwareTpm = TPM, extra_data: bytes = HASH, **changes: Any) -> Case:
    """Files of a quote. What a :class:`Case` has replaces the file; all else changes the quote before it is signed."""
    fields: dict[str, Any] = {name: changes.pop(name) for name in Case.__struct_fields__ if name in changes}
    part = decode_quote_part(tpm.quote(extra_data, **changes))
    pcrs = {BANK_NAMES[bank]: {i: v.hex() for i, v in values.items()} for bank, values in part.pcrs.items()}
    whole: dict[str, Any] = {
        "scheme": "vtpm", "now": NOW, "policy": STRICT, "nonce": HASH, "event_log": LOG, "evidence": part.attest,
        "signature": part.signature, "ak": part.ak_public, "pcrs": json.dumps(pcrs).encode(),
    }  # fmt: skip
    return Case(**whole | fields)


def _certified(subject: SoftwareTpm = TPM, signer: Any = CA_KEY, **times: Any) -> Case:
    leaf = certificate("ak", subject.key, "ca", signer, **times)
    return _case(policy=CERTIFIED, endorsements=(leaf.public_bytes(Encoding.DER),))


def _booted(events: Boot = (), *, log: bytes = b"", policy: Any = LOGGED) -> Case:
    """A machine that booted like this, and its true log."""
    log = log or agile_log(events)
    return _case(_tpm(log), event_log=log, policy=policy)


def _sent(log: bytes) -> Case:
    """The good machine, with another log beside its quote."""
    return _case(event_log=log)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


SECURE_OFF = (7, 0x80000001, secure_boot_data(b"\x00"))
OFF_BOOT = [GOOD_BOOT[0], SECURE_OFF, *GOOD_BOOT[2:]]
# Booted without; then the operating system measures what firmware would have, and the log gives the true events
# another type, which nobody has signed.
_FORGED_BOOT = [*OFF_BOOT, GOOD_BOOT[1], (7, 4, bytes(4))]
RENAMED = header() + b"".join(
    event(index, 13 if index == 7 and at < len(OFF_BOOT) else kind, data)
    for at, (index, kind, data) in enumerate(_FORGED_BOOT)
)
LYING = (
    header()
    + event(*GOOD_BOOT[0])
    + event(*GOOD_BOOT[1], digests={Alg.SHA256: hashlib.sha256(SECURE_OFF[2]).digest()})
    + b"".join(event(*item) for item in GOOD_BOOT[2:])
)

CASES: dict[str, tuple[Case, str]] = {
    # The quote.
    "quote signature flip": (_case(signature=_flipped(PART.signature, 40)), "signature"),
    "quote body flip": (_case(evidence=_flipped(PART.attest, 60)), "signature"),
    "quote signed by another key": (_case(signer=OTHER), "signature"),
    "quote truncated": (_case(evidence=PART.attest[:-1]), "malformed_evidence"),
    "other magic (TPM2_Sign of a forged attest)": (_case(magic=0xFF544348), "tpm_magic"),
    "other type (certify 8017)": (_case(attest_type=0x8017), "tpm_type"),
    "other type (time 8019)": (_case(attest_type=0x8019), "tpm_type"),
    "forged attest by a key that signs anything": (_case(attributes=AK_ATTRIBUTES & ~(1 << 16)), "ak_attributes"),
    "signature hash is SHA-1": (_case(_tpm(hash_alg=Alg.SHA1)), "signature_algorithm"),
    "nonce missing": (_case(extra_data=b""), "nonce_mismatch"),
    "nonce reversed": (_case(extra_data=HASH[::-1]), "nonce_mismatch"),
    "nonce prefix": (_case(extra_data=HASH[:-1]), "nonce_mismatch"),
    "nonce with more behind it": (_case(extra_data=HASH + b"\x00"), "nonce_mismatch"),
    "PCR value changed": (_case(carried={Alg.SHA256: PCRS | {7: b"\x01" * 32}}), "pcr_digest"),
    "PCR value not the policy's": (_booted([(0, 8, b"firmware 2"), *GOOD_BOOT[1:]], policy=STRICT), "pcr"),
    "PCR selection smaller than policy": (_case(_tpm(pcrs={Alg.SHA256: (0, 5, 7)}), policy=LOGGED), "pcr_selection"),
    "PCR selection empty": (_case(selection={Alg.SHA256: ()}), "pcr_selection"),
    "PCR selected, value not carried": (_case(carried={Alg.SHA256: {0: PCRS[0]}}), "pcr_selection"),
    "SHA-1 bank only": (_case(SoftwareTpm(pcrs={Alg.SHA1: range(8)})), "pcr_bank"),
    "oversize payload": (_case(evidence=PART.attest + bytes(4096)), "oversize"),
    # The AK.
    "AK of another machine": (_case(OTHER), "ak_not_pinned"),
    "AK of 1024 bits": (_case(_tpm(key=fixed_key("weak"))), "ak_algorithm"),
    "AK certificate missing": (_case(policy=CERTIFIED), "ak_not_certified"),
    "AK certificate of another key": (_certified(OTHER), "ak_not_certified"),
    "AK certificate expired": (_certified(end=NOW - 1), "certificate_expired"),
    "AK certificate not yet valid": (_certified(start=NOW + 1), "certificate_not_yet_valid"),
    "AK certificate of another issuer": (_certified(signer=fixed_key()), "untrusted_chain"),
    # The event log.
    "event log: missing": (_case(event_log=None), "event_log_missing"),
    "event log: digest/PCR mismatch": (
        _sent(agile_log([*GOOD_BOOT[:-2], (4, 0x80000003, b"other"), GOOD_BOOT[-1]])), "event_log_replay",
    ),
    "event log: reordered": (
        _sent(agile_log([*GOOD_BOOT[:6], GOOD_BOOT[-2], *GOOD_BOOT[6:-2], GOOD_BOOT[-1]])), "event_log_replay",
    ),
    "event log: one event left out": (_sent(agile_log([*GOOD_BOOT[:-2], GOOD_BOOT[-1]])), "event_log_replay"),
    "event log: truncated": (_sent(LOG[:-1]), "event_log_truncated"),
    "event log: digest count 2^32-1": (_sent(LOG + event(0, 13, b"", count=0xFFFFFFFF)), "event_log_digests"),
    "event log: event size overflow": (_sent(LOG + event(0, 13, b"", size=0xFFFFFFFF)), "event_log_truncated"),
    "event log: oversize": (_sent(LOG + bytes(5 << 20)), "oversize"),
    "event log: another bank": (_sent(agile_log(algorithms=(Alg.SHA384,))), "event_log_bank"),
    "event log: separator missing": (
        _booted([item for item in GOOD_BOOT if item[:2] != (0, 4)]), "event_log_separator",
    ),
    "event log: separator duplicate": (_booted([*GOOD_BOOT, (3, 4, bytes(4))]), "event_log_separator"),
    "event log: separator duplicate by another type": (_booted([*GOOD_BOOT, (3, 13, bytes(4))]), "event_log_separator"),
    "event log: types changed to hide secure boot off": (_booted(log=RENAMED), "event_log_separator"),
    "event log: no-action only": (_sent(header() + event(0, 3, b"note")), "event_log_empty"),
    "event log: data not matching digest": (
        _case(_tpm(agile_log(OFF_BOOT)), event_log=LYING, policy=LOGGED), "event_log_data",
    ),
    "event log: ExitBootServices missing": (_booted(GOOD_BOOT[:-1]), "exit_boot_services"),
    "event log: secure boot off": (_booted(OFF_BOOT), "secure_boot"),
    "event log: secure boot unsaid": (_booted([GOOD_BOOT[0], *GOOD_BOOT[2:]]), "secure_boot"),
}  # fmt: skip


def test_nothing_wrong() -> None:
    for case in (_case(), _certified(), _booted(GOOD_BOOT)):
        assert judge(case).reason == "ok", judge(case)


@pytest.mark.parametrize("name", CASES)
def test_refused_for_this_alone(name: str) -> None:
    case, code = CASES[name]
    verdict = judge(case)
    assert (verdict.verdict, verdict.reason) == ("reject", code), verdict.detail
    assert {mismatch.code for mismatch in verdict.mismatches} <= {code}

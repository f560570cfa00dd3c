"""CoRIM: signed ones as reference values; each signature, time, tag or member that is wrong, alone."""

from __future__ import annotations

import contextlib
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from attest.corim import import_corim
from attest.cose import cbor_read, load_trust_key, verify_sign1
from attest.errors import AttestError, MalformedEvidence, PolicyFormatError, Stale, VerificationFailed
from attest.policy import parse_policy

from .conftest import NOW

KEY = ec.generate_private_key(ec.SECP384R1())
CHIP = cbor2.CBORTag(37, bytes.fromhex("d05e6d1b9f464ae2a610ce3e6ee7e153"))
CSP = cbor2.CBORTag(37, bytes.fromhex("89a7a1f0e7044faaacbd81c86df8a961"))


def raw(data: bytes) -> Any:
    return cbor2.CBORTag(560, data)


def snp(*measurements: Any, environment: Any = None) -> list[Any]:
    return [environment or {0: {0: CHIP}}, list(measurements)]


def corim(*triples: Any, **changes: Any) -> dict[int, Any]:
    comid = {1: {0: "tag", 1: 0}, 4: {0: list(triples)}} | changes.get("comid", {})
    return {0: "corim", 1: [cbor2.CBORTag(506, cbor2.dumps(comid))]} | changes.get("corim", {})


def sign(payload: Any, *, header: Any = None, key: Any = KEY, alg: int = -35) -> bytes:
    protected = cbor2.dumps({1: alg, 3: "application/rim+cbor"} if header is None else header)
    body = payload if isinstance(payload, bytes) else cbor2.dumps(cbor2.CBORTag(501, payload))
    data = cbor2.dumps(["Signature1", protected, b"", body])
    if isinstance(key, ec.EllipticCurvePrivateKey):
        digest = {-7: hashes.SHA256(), -35: hashes.SHA384(), -36: hashes.SHA512()}.get(alg, hashes.SHA384())
        size = (key.curve.key_size + 7) // 8
        signature = b"".join(n.to_bytes(size, "big") for n in decode_dss_signature(key.sign(data, ec.ECDSA(digest))))
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    else:
        signature = key.sign(data)
    return cbor2.dumps(cbor2.CBORTag(18, [protected, {}, body, signature]))


def _public(key: Any = KEY) -> Any:
    return load_trust_key(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _import(raw_corim: bytes, now: float = NOW) -> Any:
    """The values, as a policy that uses the file sees them."""
    text = import_corim(raw_corim, _public(), "file", now=now)
    platform = "tdx" if "[tdx]" in text or "[tdx." in text else "sev-snp"
    rules = {"sev-snp": "unsafe_any_tcb = true", "tdx": "rtmrs = [0]"}[platform]
    policy = parse_policy(f'id = "p"\nreference_values_file = "f"\n[{platform}]\n{rules}\n', text)
    assert list(policy.reference_files) == ["file"]
    return getattr(policy.reference_values, platform.replace("-", "_"))


FULL = snp(
    {0: 0, 1: {2: [[7, b"\x01" * 48], ["sha-384", b"\x02" * 48]], 4: raw(b"\x03" * 16), 0: {0: "04" * 16}}},
    {0: 5, 1: {4: raw(b"\x05" * 48)}}, {0: 6, 1: {4: raw(b"\x06" * 48)}}, {0: 8, 1: {4: raw(b"\x08" * 32)}},
    {0: 3, 1: {4: raw(b"\x09" * 32)}}, {0: 4, 1: {4: raw(b"\x0a" * 32)}},
    environment={0: {0: CHIP}, 1: raw(b"\x07" * 8)},
)  # fmt: skip


def test_sev_snp() -> None:
    values = _import(sign(corim(FULL)))
    assert values.measurements == ("01" * 48, "02" * 48) and values.chip_ids == ("07" * 8 + "00" * 56,)
    assert (values.family_ids, values.image_ids) == (("03" * 16,), ("04" * 16,))
    assert (values.id_key_digests, values.author_key_digests) == (("05" * 48,), ("06" * 48,))
    assert (values.host_data, values.report_ids, values.report_ids_ma) == (("08" * 32,), ("09" * 32,), ("0a" * 32,))


def _measured(byte: int) -> dict[int, Any]:
    return {0: 0, 1: {2: [[7, bytes((byte,)) * 48]]}}


def test_alternatives_and_csp() -> None:
    environment = {0: {0: CSP}, 1: raw(b"cloud")}
    triples = [snp(_measured(n), environment=environment) for n in (1, 2)]
    values = _import(sign(corim(*triples)))
    assert values.csp_ids == ("cloud",) and values.measurements == ("01" * 48, "02" * 48)


INTEL = {0: {1: "Intel Corporation", 2: "TDX"}}


def test_tdx() -> None:
    registers = {0: [[7, b"\x02" * 48]]}
    values = _import(sign(corim([INTEL, [{1: {-83: [7, b"\x01" * 48], 14: registers}}]])))
    assert values.mr_td == ("01" * 48,) and values.rtmr_values == {"0": ("02" * 48,)}


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (ec.generate_private_key(ec.SECP256R1()), -7),
        (ec.generate_private_key(ec.SECP521R1()), -36),
        (rsa.generate_private_key(65537, 2048), -37),
        (ed25519.Ed25519PrivateKey.generate(), -8),
    ],
)
def test_algorithms(key: Any, alg: int) -> None:
    signed = sign(corim(snp(_measured(1))), key=key, alg=alg)
    assert "01" * 48 in import_corim(signed, _public(key), "f", now=NOW)
    with pytest.raises(VerificationFailed) as caught:
        import_corim(signed, _public(), "f", now=NOW)
    assert caught.value.code == "cose_algorithm"


GOOD = sign(corim(snp(_measured(1))))


def test_another_key_and_every_bit_of_payload_and_signature() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(VerificationFailed) as caught:
        import_corim(GOOD, _public(other), "f", now=NOW)
    assert caught.value.code == "cose_signature"
    for at in range(len(GOOD)):
        damaged = bytearray(GOOD)
        damaged[at] ^= 1
        with pytest.raises((MalformedEvidence, VerificationFailed)):
            import_corim(bytes(damaged), _public(), "f", now=NOW)


SIGNED_WRONGLY: dict[str, tuple[bytes, str]] = {
    "unsigned": (cbor2.dumps(cbor2.CBORTag(501, corim(snp(_measured(1))))), "not_signed"),
    "mac": (cbor2.dumps(cbor2.CBORTag(17, [b"", {}, b"", b""])), "not_signed"),
    "another content": (sign(corim(snp(_measured(1))), header={1: -35, 3: "text/plain"}), "malformed_evidence"),
    "critical": (sign(corim(snp(_measured(1))), header={1: -35, 2: [99], 99: 1}), "malformed_evidence"),
    "no algorithm": (sign(corim(snp(_measured(1))), header={}), "cose_algorithm"),
    "algorithm of another curve": (sign(corim(snp(_measured(1))), alg=-7), "cose_algorithm"),
    "detached": (cbor2.dumps(cbor2.CBORTag(18, [b"\xa0", {}, None, b""])), "malformed_evidence"),
    "ended": (sign(corim(snp(_measured(1)), corim={4: {1: cbor2.CBORTag(1, int(NOW) - 1)}})), "corim_validity"),
    "not yet": (sign(corim(snp(_measured(1)), corim={4: {0: int(NOW) + 9, 1: int(NOW) + 99}})), "corim_validity"),
    "signer ended": (
        sign(corim(snp(_measured(1))), header={1: -35, 8: cbor2.dumps({0: {0: "me"}, 1: {1: 5}})}), "corim_validity"),
    "cwt ended": (sign(corim(snp(_measured(1))), header={1: -35, 15: {4: 5}}), "corim_validity"),
    "cwt not yet": (sign(corim(snp(_measured(1))), header={1: -35, 15: {5: int(NOW) + 9}}), "corim_validity"),
}  # fmt: skip


@pytest.mark.parametrize("case", SIGNED_WRONGLY)
def test_signed_wrongly(case: str) -> None:
    signed, code = SIGNED_WRONGLY[case]
    with pytest.raises((MalformedEvidence, VerificationFailed, Stale)) as caught:
        import_corim(signed, _public(), "f", now=NOW)
    assert caught.value.code == code


def test_times_that_hold() -> None:
    period = {0: int(NOW) - 1, 1: int(NOW) + 1}
    header = {1: -35, 8: cbor2.dumps({1: period}), 15: {4: int(NOW) + 1, 5: 1}}
    assert _import(sign(corim(snp(_measured(1)), corim={4: period, 3: "x", 5: []}), header=header)).measurements


# What it says, and the name by which it is refused.
REFUSED: dict[str, tuple[dict[int, Any], str]] = {
    "dependent": (corim(snp(_measured(1)), corim={2: [{}]}), "dependent-rims"),
    "unknown member": (corim(snp(_measured(1)), corim={77: 1}), "77"),
    "coswid": (corim(corim={1: [cbor2.CBORTag(505, b"")]}), "CoMID"),
    "linked": (corim(snp(_measured(1)), comid={3: []}), "linked-tags"),
    "endorsed": (corim(comid={4: {0: [snp(_measured(1))], 1: []}}), "endorsed-triples"),
    "series": (corim(comid={4: {0: [snp(_measured(1))], 8: []}}), "conditional-endorsement-series"),
    "group": (corim(snp(_measured(1), environment={0: {0: CHIP}, 2: 1})), "group"),
    "layer": (corim(snp(_measured(1), environment={0: {0: CHIP, 3: 1}})), "layer"),
    "class": (corim(snp(_measured(1), environment={0: {0: cbor2.CBORTag(37, b"\x00" * 16)}})), "class"),
    "authorized": (corim(snp({**_measured(1), 2: []})), "authorized-by"),
    "svn": (corim(snp({0: 0, 1: {1: cbor2.CBORTag(553, 3)}})), "svn"),
    "flags": (corim(snp({0: 0, 1: {3: {}}})), "flags"),
    "vmpl": (corim(snp({0: 2, 1: {4: 1}})), "mkey 2"),
    "uuid as key": (corim(snp({0: cbor2.CBORTag(37, b"\x01" * 16), 1: {2: [[7, b"1" * 48]]}})), "01" * 16),
    "sha-256": (corim(snp({0: 0, 1: {2: [[1, b"\x01" * 48]]}})), "SHA-384"),
    "masked": (corim(snp({0: 8, 1: {4: cbor2.CBORTag(563, [b"", b""])}})), "raw-value"),
    "correlated": (
        corim(snp(_measured(1), {0: 5, 1: {4: raw(b"a" * 48)}}), snp(_measured(2), {0: 5, 1: {4: raw(b"b" * 48)}})),
        "belong together"),
    "other fields": (corim(snp(_measured(1)), snp({0: 5, 1: {4: raw(b"b" * 48)}})), "belong together"),
    "tdx key": (corim([INTEL, [{0: 1, 1: {-83: [7, b"1" * 48]}}]]), "mkey"),
    "tdx digests": (corim([INTEL, [{1: {2: [[7, b"1" * 48]]}}]]), "digests"),
    "tdx signer": (corim([INTEL, [{1: {-84: [7, b"1" * 48]}}]]), "tee.mrsigner"),
    "tdx register": (corim([INTEL, [{1: {14: {4: [[7, b"1" * 48]]}}}]]), "no RTMR"),
    "many": (corim(*[snp(_measured(n)) for n in range(65)]), "over 64"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_named(case: str) -> None:
    content, word = REFUSED[case]
    with pytest.raises(PolicyFormatError, match=word):
        _import(sign(content))


def test_who_says_the_same_twice_says_it_once() -> None:
    assert _import(sign(corim(snp(_measured(1), _measured(1))))).measurements == ("01" * 48,)


def test_a_signer_is_described_by_maps() -> None:
    for header in ({1: -35, 8: []}, {1: -35, 15: 5}):
        with pytest.raises(MalformedEvidence):
            _import(sign(corim(snp(_measured(1))), header=header))


MALFORMED: list[Any] = [
    [], {}, {0: 1, 1: []}, {0: 1, 1: 5}, corim(), corim([1]), corim([{0: {0: CHIP}}, []]),
    corim(snp({0: 0, 1: {}})), corim(snp({0: 8, 1: {4: raw(b"short")}})), corim(snp({0: 0, 1: {0: {0: "zz"}}})),
    corim(snp({0: 0, 1: {2: [7]}})), corim(snp(_measured(1), environment={0: {0: CHIP}, 1: raw(b"123")})),
    corim(snp(_measured(1), environment={0: {0: CSP}, 1: raw(b"\xff")})), corim(snp(_measured(1)), corim={4: {}}),
    corim(snp(_measured(1)), corim={4: {1: "soon"}}),
]  # fmt: skip


@pytest.mark.parametrize("content", MALFORMED)
def test_malformed(content: Any) -> None:
    with pytest.raises(MalformedEvidence):
        _import(sign(content))


def test_trust_keys() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key()
    for pem in (
        b"",
        b"-----BEGIN CERTIFICATE-----",
        weak.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ):
        with pytest.raises(MalformedEvidence):
            load_trust_key(pem)


@given(st.binary(max_size=64))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for read in (lambda: cbor_read(data), lambda: verify_sign1(data, _public()), lambda: _import(sign(data))):
        with contextlib.suppress(AttestError):
            read()


_VALUES = st.recursive(
    st.integers(-(2**63), 2**63) | st.binary(max_size=9) | st.text(max_size=9) | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(-9, 99) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_VALUES)
def test_cbor_of_another_writer(value: Any) -> None:
    assert cbor_read(cbor2.dumps(value)) == value

"""The collection and its certificate extension, strictly."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attest.codec import cbor_encode
from attest.errors import MalformedEvidence
from attest.evidence import (
    CLAIMS_TYPE,
    COLLECTION_TYPE,
    HARDWARE,
    MAX_EVIDENCE_BYTES,
    SNP_REPORT_TYPE,
    TPM2_QUOTE_TYPE,
    TPM_QUOTE,
    Evidence,
    Part,
    cmw_from_extension,
    decode_certificates,
    decode_evidence,
    encode_certificates,
    encode_evidence,
    extension_value,
)

EVIDENCE = Evidence(b"claims", {HARDWARE: Part(SNP_REPORT_TYPE, b"report"), TPM_QUOTE: Part(TPM2_QUOTE_TYPE, b"q")})


def test_round_trip_and_shape() -> None:
    raw = encode_evidence(EVIDENCE)
    assert decode_evidence(raw) == EVIDENCE
    assert cbor2.loads(raw) == {
        "__cmwc_t": "urn:cube-mesh:evidence:1",
        0: ["application/vnd.cube-mesh.claims+cbor", b"claims"],
        1: ["application/vnd.cube-mesh.snp-report", b"report"],
        2: ["application/vnd.cube-mesh.tpm2-quote+cbor", b"q"],
    }


TYPE = {"__cmwc_t": COLLECTION_TYPE}
CLAIMS = [CLAIMS_TYPE, b"c"]
REFUSED = {
    "empty collection": {},
    "no claims": TYPE,
    "no type": {0: CLAIMS},
    "other type": {"__cmwc_t": "urn:cube-mesh:evidence:2", 0: CLAIMS},
    "claims of another type": {**TYPE, 0: [SNP_REPORT_TYPE, b"c"]},
    "key 8": {**TYPE, 0: CLAIMS, 8: ["x", b"y"]},
    "text key": {**TYPE, 0: CLAIMS, "1": ["x", b"y"]},
    "record of three": {**TYPE, 0: CLAIMS, 1: ["x", b"y", 1]},
    "record of one": {**TYPE, 0: CLAIMS, 1: ["x"]},
    "record is bytes": {**TYPE, 0: CLAIMS, 1: b"y"},
    "type is bytes": {**TYPE, 0: CLAIMS, 1: [b"x", b"y"]},
    "body is text": {**TYPE, 0: CLAIMS, 1: ["x", "y"]},
    "empty type": {**TYPE, 0: CLAIMS, 1: ["", b"y"]},
    "empty body": {**TYPE, 0: CLAIMS, 1: ["x", b""]},
    "empty claims": {**TYPE, 0: [CLAIMS_TYPE, b""]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(MalformedEvidence):
        decode_evidence(cbor_encode(REFUSED[name]))  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [b"", b"\x80", encode_evidence(EVIDENCE) + b"\x00", bytes(MAX_EVIDENCE_BYTES + 1)])
def test_refused_bytes(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        decode_evidence(raw)


def test_a_well_formed_collection_above_the_limit() -> None:
    def sized(length: int) -> bytes:
        return cbor_encode({**TYPE, 0: CLAIMS, 1: ["x", bytes(length)]})

    overhead = len(sized(60_000)) - 60_000
    assert decode_evidence(sized(MAX_EVIDENCE_BYTES - overhead)).parts[HARDWARE].media_type == "x"
    with pytest.raises(MalformedEvidence, match="above"):
        decode_evidence(sized(MAX_EVIDENCE_BYTES - overhead + 1))


def test_encode_refuses_what_decode_refuses() -> None:
    with pytest.raises(ValueError, match="no part 8"):
        encode_evidence(Evidence(b"c", {8: Part("x", b"y")}))
    with pytest.raises(ValueError, match="above"):
        encode_evidence(Evidence(bytes(MAX_EVIDENCE_BYTES), {}))


@given(st.integers(1, 70_000).filter(lambda n: n <= MAX_EVIDENCE_BYTES))
@settings(max_examples=60, deadline=None)
def test_extension_round_trip(length: int) -> None:
    raw = b"\x5a" * length
    assert cmw_from_extension(extension_value(raw)) == raw


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x04",
        b"\x04\x00",
        b"\x03\x01a",
        b"\x24\x03\x04\x01a",  # constructed
        b"\x04\x80a\x00\x00",  # indefinite
        b"\x04\x81\x01a",  # long form of a short length
        b"\x04\x82\x00\x80" + bytes(128),  # leading zero in the length
        b"\x04\x01ab",  # trailing
        b"\x04\x02a",  # truncated
        b"\x04\xff" + bytes(200),
        extension_value(bytes(MAX_EVIDENCE_BYTES + 1)),
    ],
)
def test_extension_refused(value: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        cmw_from_extension(value)


def test_certificates_part() -> None:
    assert decode_certificates(encode_certificates((b"a", b"b")).body) == (b"a", b"b")
    for bad in ([], 1, ["a"], [b""], [b"a"] * 9):
        with pytest.raises(MalformedEvidence):
            decode_certificates(cbor_encode(bad))  # type: ignore[arg-type]

"""Google Cloud's evidence: the launcher's token over a unix socket, and Google's AK in a software TPM."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.attester import Collector, evidence_for
from attest.binding import Expected
from attest.errors import CollectionFailed
from attest.evidence import ENDORSEMENTS, TPM_QUOTE, decode_certificates
from attest.jws import parse_jwks
from attest.policy import parse_policy
from attest.schemes.gcp.collect import AK_INDEXES, SpaceCollector, gce_collector
from attest.schemes.vtpm.collect import TpmCollector, template_arguments
from attest.schemes.vtpm.verify import verify_quote
from attest.testkit.tokens import jwks, sign, space_claims
from attest.verifier import Verifier
from cube_mesh.collateral.transport import BlockingTransport
from tests.attest.conftest import CLAIMS, NOW
from tests.support.clouds import ROOT, GceVm, Tpm
from tests.support.endpoint import Endpoint, Reply, Seen, endpoint
from tests.support.tpm import software_tpm

HASH = bytes(range(32))
AUDIENCE = "https://relying.example"
POLICY = parse_policy(f'id = "g"\n[gcp]\naudiences = ["{AUDIENCE}"]\nunsafe_any_image = true\n')


def refused(one: Collector) -> CollectionFailed:
    with pytest.raises(CollectionFailed) as caught:
        one.parts(HASH)
    return caught.value


# --- Confidential Space ---


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Endpoint]:
    with endpoint(tmp_path / "teeserver.sock") as made:
        made.on("POST", "/v1/token", launched)
        yield made


def launched(seen: Seen) -> Reply:
    """As the launcher: a token with the nonces and the audience that were asked for."""
    asked = json.loads(seen.body)
    if not all(10 <= len(nonce) <= 74 for nonce in asked["nonces"]) or len(asked["nonces"]) > 6:
        return Reply(b"nonces must have 10 to 74 bytes", 400)
    (nonce,) = asked["nonces"]
    return Reply(sign(space_claims(NOW, nonce, {"aud": asked["audience"]})) + b"\n")


def space(directory: Path, **more: str) -> SpaceCollector:
    transport = BlockingTransport(5.0, sleep=lambda _: None)
    return SpaceCollector(AUDIENCE, transport, unix_socket=str(directory / "teeserver.sock"), **more)  # type: ignore[arg-type]


def test_a_verifier_accepts_the_token(launcher: Endpoint, tmp_path: Path, expected: Expected) -> None:
    raw = evidence_for(space(tmp_path), CLAIMS)
    result = Verifier(POLICY, token_keys=parse_jwks(jwks())).appraise(raw, expected, now=NOW)
    assert result.platform == "gcp"
    (seen,) = launcher.seen
    assert seen.fields["content-type"] == "application/json"
    assert json.loads(seen.body) | {"nonces": []} == {"audience": AUDIENCE, "nonces": [], "token_type": "OIDC"}


def test_the_kind_of_token_is_asked_for(launcher: Endpoint, tmp_path: Path) -> None:
    space(tmp_path, token_type="PKI").parts(HASH)
    assert json.loads(launcher.seen[0].body)["token_type"] == "PKI"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(b"audience is not allowed", 400), "endpoint_refused"),
        (Reply(b"", 503), "endpoint_busy"),
        (Reply(b"not.a"), "endpoint_answer"),
        (Reply(drop=True), "endpoint_unreachable"),
        (Reply(b"x" * 70_000), "endpoint_answer"),
    ],
)
def test_a_launcher_that_gives_no_token(launcher: Endpoint, tmp_path: Path, reply: Reply, code: str) -> None:
    launcher.at("POST", "/v1/token", reply)
    assert refused(space(tmp_path)).code == code


def test_outside_of_confidential_space(tmp_path: Path) -> None:
    with pytest.raises(CollectionFailed, match="teeserver") as caught:
        space(tmp_path).parts(HASH)
    assert caught.value.code == "endpoint_unreachable"


def test_nobody_s_token() -> None:
    with pytest.raises(ValueError, match="audience"):
        SpaceCollector("", BlockingTransport(1.0))


# --- GCE ---


@pytest.fixture(scope="module")
def gce(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GceVm]:
    with ExitStack() as stack:
        yield GceVm(Tpm(stack.enter_context(software_tpm()), tmp_path_factory.mktemp("gce")))


@pytest.mark.parametrize("algorithm", ["rsa", "ecc"])
def test_googles_key_quotes_and_its_certificate_goes_along(
    gce: GceVm, algorithm: Literal["rsa", "ecc"], expected: Expected
) -> None:
    root = ROOT.public_bytes(Encoding.PEM).decode()
    policy = f"""id = "gce"
unsafe_accept_vtpm_only = true
[vtpm]
pcrs = [0, 7]
unsafe_any_pcr_values = true
[reference_values.vtpm]
ak_roots = ['''{root}''']
"""
    with gce_collector(
        gce.tpm.tcti, (0, 7), algorithm=algorithm, ak_certificates=(ROOT.public_bytes(Encoding.DER),)
    ) as tpm:
        raw = evidence_for(tpm, CLAIMS)
        again = tpm.parts(HASH)
    result = Verifier(parse_policy(policy)).appraise(raw, expected, now=NOW)
    assert result.platform == "vtpm" and result.claims["ak.name"] == tpm_name(again[TPM_QUOTE].body)
    assert len(decode_certificates(again[ENDORSEMENTS].body)) == 2
    assert verify_quote(again[TPM_QUOTE].body, HASH).key == gce.keys[algorithm]


def tpm_name(body: bytes) -> str:
    return verify_quote(body, HASH).ak_name


def test_the_seed_of_a_template_decides_the_key(gce: GceVm) -> None:
    """What a cloud writes into ``unique`` must reach the TPM: another seed, another key."""
    sizes: dict[Literal["rsa", "ecc"], int] = {"rsa": 256, "ecc": 32}
    for algorithm, size in sizes.items():
        plain = gce.tpm.tools.read_nv(AK_INDEXES[algorithm][1])
        number = size.to_bytes(2, "big") + b"\x07" * size
        seeded = plain[:-2] + number if algorithm == "rsa" else plain[:-4] + number * 2
        names = set()
        for index, template in ((0x01C20001, seeded), (0x01C20002, seeded.replace(b"\x07", b"\x08"))):
            gce.tpm.store(index + (0x100 if algorithm == "ecc" else 0), template)
            with TpmCollector(gce.tpm.tcti, (0,), ak_template=index + (0x100 if algorithm == "ecc" else 0)) as tpm:
                names.add(tpm.ak_name)
        with gce_collector(gce.tpm.tcti, (0,), algorithm=algorithm) as tpm:
            names.add(tpm.ak_name)
        assert len(names) == 3


def test_a_template_that_the_tools_cannot_say(gce: GceVm) -> None:
    """A policy in the template would be lost on the way: then the key is another one, and that is an error."""
    plain = gce.tpm.tools.read_nv(AK_INDEXES["ecc"][1])
    gce.tpm.store(0x01C20003, plain[:8] + b"\x00\x20" + b"p" * 32 + plain[10:])
    with (
        TpmCollector(gce.tpm.tcti, (0,), ak_template=0x01C20003) as tpm,
        pytest.raises(CollectionFailed, match="another key"),
    ):
        tpm.parts(HASH)


@pytest.mark.parametrize("change", [(0, 1, b"\x99"), (12, 14, b"\x00\x99"), (2, 4, b"\x00\x10"), (14, 16, b"\x00\x10")])
def test_templates_of_no_signing_key(gce: GceVm, change: tuple[int, int, bytes]) -> None:
    start, end, new = change
    plain = gce.tpm.tools.read_nv(AK_INDEXES["rsa"][1])
    with pytest.raises(CollectionFailed, match="template"):
        template_arguments(plain[:start] + new + plain[end:])


def test_an_instance_without_the_certificate(gce: GceVm) -> None:
    with TpmCollector(gce.tpm.tcti, (0,), ak_template=AK_INDEXES["ecc"][1], ak_certificate=0x01C2FFFF) as tpm:
        assert refused(tpm).code == "tpm_failed"


@pytest.mark.parametrize("content", [b"\x00" * 64, b"\x30\x82\x00\x10" + bytes(15), b"\x30\x82\x00\x01\x00" + b"junk"])
def test_an_index_without_a_certificate(gce: GceVm, content: bytes) -> None:
    index = 0x01C30000 + len(content)
    gce.tpm.store(index, content)
    with pytest.raises(CollectionFailed, match="no certificate"):
        gce.tpm.tools.read_certificate(index)


def test_nv_of_another_size_is_an_error(gce: GceVm) -> None:
    gce.tpm.store(0x01C40000, b"abcd")
    gce.tpm.store(0x01C40000, b"dcba")
    assert gce.tpm.tools.read_nv(0x01C40000) == b"dcba"
    with pytest.raises(CollectionFailed, match="tpm2_nvwrite"):
        gce.tpm.store(0x01C40000, b"abcde")


def test_a_tpm_reset_between_two_quotes(gce: GceVm) -> None:
    with gce_collector(gce.tpm.tcti, (0,)) as tpm:
        name = tpm.ak_name
        control = f"{gce.tpm.tcti.removeprefix('swtpm:path=')}.ctrl"
        subprocess.run(["swtpm_ioctl", "--unix", control, "-i"], check=True)
        subprocess.run(["tpm2_startup", "-c", "-T", gce.tpm.tcti], check=True)
        assert verify_quote(tpm.parts(HASH)[TPM_QUOTE].body, HASH).ak_name == name

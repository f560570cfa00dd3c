"""An Azure VM's evidence, from a software TPM and scripted services: accepted by a verifier; each thing that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from attest.attester import Closing, Collector, evidence_for
from attest.binding import Expected, data_hash, encode_claims
from attest.chain import common_name, load_certificate
from attest.errors import AttestError, CollectionFailed
from attest.evidence import ENDORSEMENTS, HARDWARE, TOKEN, decode_certificates, decode_evidence, encode_evidence
from attest.jws import parse_jwks
from attest.policy import first_report_policy, parse_policy
from attest.schemes.azure.client import chip_certificates, td_quote
from attest.schemes.azure.collect import HCL_REPORT, AzureCollector, MaaCollector, user_data
from attest.testkit.intel import collateral
from attest.testkit.tokens import MAA_ISSUER, fixed_key, jwks
from attest.transport import Answer, Ask
from attest.verifier import Verifier
from cube_mesh.collateral.transport import BlockingTransport
from tests.attest.conftest import CLAIMS, NOW
from tests.support.clouds import MAA_SNP, MAA_TDX, QUOTE, ROOT, THIM, AzureVm, Tpm
from tests.support.endpoint import Endpoint, Reply, endpoint
from tests.support.tpm import software_tpm

HASH = bytes(range(32))
MAA_POLICY = parse_policy(f'id = "m"\n[maa]\nissuers = ["{MAA_ISSUER}"]\nunsafe_any_measurement = true\n')
EVENT = data_hash(encode_claims(CLAIMS))


@pytest.fixture(scope="module", params=["sev-snp", "tdx"])
def vm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureVm]:
    with ExitStack() as stack:
        tpm = Tpm(stack.enter_context(software_tpm()), tmp_path_factory.mktemp("azure"))
        made = AzureVm(tpm, stack.enter_context(endpoint()), request.param)
        made.tpm.store(HCL_REPORT, made.report(made.claims())[:2000])
        yield made


@pytest.fixture
def service(vm: AzureVm) -> Iterator[Endpoint]:
    """The VM's services, put back as they were; what they have seen is forgotten."""
    vm.service.seen.clear()
    yield vm.service
    vm.serve()


def transport() -> BlockingTransport:
    return BlockingTransport(5.0, sleep=lambda _: None)


def collector(vm: AzureVm, **more: object) -> AzureCollector:
    return AzureCollector(vm.tpm.tcti, (0, 7), transport(), metadata_url=vm.service.url, **more)  # type: ignore[arg-type]


def azure_on(tcti: str, vm: AzureVm) -> AzureCollector:
    return AzureCollector(tcti, (0,), transport(), metadata_url=vm.service.url)


def maa(vm: AzureVm) -> MaaCollector:
    return MaaCollector(vm.tpm.tcti, f"{vm.service.url}/", transport(), metadata_url=vm.service.url, pause_s=0.001)


def refused(one: Collector) -> CollectionFailed:
    with pytest.raises(CollectionFailed) as caught:
        one.parts(HASH)
    return caught.value


# --- HCL report and quote ---


def test_a_verifier_accepts_it(vm: AzureVm, service: Endpoint, expected: Expected) -> None:
    one = collector(vm, ak_certificates=(ROOT.public_bytes(Encoding.DER),))
    raw = evidence_for(one, CLAIMS)
    verifier = Verifier(first_report_policy("azure", "vtpm", vm.kind), allow_simulated=True)  # type: ignore[arg-type]
    result = verifier.appraise(raw, expected, now=NOW, endorsements=[collateral()] if vm.kind == "tdx" else ())
    assert result.platform == f"azure+simulated-{vm.kind}+vtpm"
    sent = decode_certificates(decode_evidence(raw).parts[ENDORSEMENTS].body)
    names = [common_name(load_certificate(der)) for der in sent]
    assert names == [*(["SEV-VCEK", "SEV-Milan"] if vm.kind == "sev-snp" else []), "AK", "Virtual TPM Root"]
    assert isinstance(one, Closing)
    one.close()


def test_the_same_report_asks_for_certificates_once_and_for_quotes_each_time(vm: AzureVm, service: Endpoint) -> None:
    one = collector(vm)
    first, second = one.parts(HASH), one.parts(EVENT)
    one.close()
    asked = [(seen.method, seen.target) for seen in service.seen]
    assert asked == ([("GET", THIM)] if vm.kind == "sev-snp" else [("POST", QUOTE)] * 2)
    assert {seen.fields["metadata"] for seen in service.seen} == {"true"}
    assert first[ENDORSEMENTS] == second[ENDORSEMENTS]
    assert not first[HARDWARE].body.endswith(bytes(4))  # the padding of NV is not sent


@pytest.mark.parametrize("kind", ["busy", "refused", "nonsense", "gone"])
def test_a_metadata_service_that_fails(vm: AzureVm, service: Endpoint, kind: str) -> None:
    replies = {
        "busy": (Reply(b"Too many requests", 429), "endpoint_busy"),
        "refused": (Reply(b"Identity not found", 404), "endpoint_refused"),
        "nonsense": (Reply(b"<html>"), "endpoint_answer"),
        "gone": (Reply(drop=True), "endpoint_unreachable"),
    }
    reply, code = replies[kind]
    service.at("GET", THIM, reply)
    service.at("POST", QUOTE, reply)
    with closing(collector(vm)) as one:
        assert refused(one).code == code


def test_throttling_is_waited_out(vm: AzureVm, service: Endpoint) -> None:
    target = ("GET", THIM) if vm.kind == "sev-snp" else ("POST", QUOTE)
    with closing(collector(vm)) as one:
        good = one.parts(HASH)[HARDWARE].media_type
        respond = service.responder(*target)
        busy = [Reply(status=429, fields={"retry-after": "0"}), Reply(status=503)]
        service.on(*target, lambda seen: busy.pop() if busy else respond(seen))
        service.seen.clear()
    with closing(collector(vm)) as one:
        assert one.parts(HASH)[HARDWARE].media_type == good
    assert len(service.seen) == 3


def test_another_key_than_the_report_names(vm: AzureVm, service: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "ak", fixed_key("service-other").public_key())
    vm.paravisor(monkeypatch)
    with closing(collector(vm)) as one:
        error = refused(one)
    assert error.code == "azure_failed" and "0x81000003" in str(error)


@pytest.mark.parametrize("content", [b"", b"HCLA", b"x" * 1300])
def test_an_index_with_something_else(
    vm: AzureVm, service: Endpoint, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr("attest.schemes.vtpm.tools.TpmTools.read_nv", lambda *_: content)
    with closing(collector(vm)) as one:
        assert refused(one).code == "azure_failed"


def test_a_machine_that_is_not_azures(service: Endpoint, vm: AzureVm) -> None:
    with software_tpm() as tcti, closing(azure_on(tcti, vm)) as one:
        error = refused(one)
    assert error.code == "tpm_failed" and "tpm2_nvread" in str(error)


# --- MAA ---


def test_a_token_speaks_for_the_claims_through_user_data(
    vm: AzureVm, service: Endpoint, monkeypatch: pytest.MonkeyPatch, expected: Expected
) -> None:
    vm.paravisor(monkeypatch)
    raw = evidence_for(maa(vm), CLAIMS)
    verifier = Verifier(MAA_POLICY, token_keys=parse_jwks(jwks()))
    assert verifier.appraise(raw, expected, now=NOW).platform == "maa"
    ours, other = decode_evidence(raw), decode_evidence(evidence_for(maa(vm), replace(CLAIMS, boot_id=b"c" * 16)))
    with pytest.raises(AttestError) as caught:  # the token of other claims beside these
        verifier.appraise(encode_evidence(replace(ours, parts=other.parts)), expected, now=NOW)
    assert caught.value.code == "nonce_mismatch"


def test_only_the_very_user_data_counts(vm: AzureVm, service: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paravisor that does not take the new user data would leave a token of old claims."""
    vm.paravisor(monkeypatch)
    stale = vm.claims(bytes(64))
    monkeypatch.setattr(vm, "claims", lambda _=b"": stale)
    error = refused(maa(vm))
    assert error.code == "azure_failed" and "user data" in str(error)
    assert not [seen for seen in service.seen if seen.target.startswith("/attest")]


def test_a_paravisor_takes_its_time(vm: AzureVm, service: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    vm.paravisor(monkeypatch, stale_reads=3)
    assert TOKEN in maa(vm).parts(HASH)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(b'{"error":{"code":"PolicyEvaluationError","message":"denied"}}', 400), "endpoint_refused"),
        (Reply(b"", 429, {"retry-after": "60"}), "endpoint_busy"),
        (Reply(b'{"token":"no token"}'), "endpoint_answer"),
        (Reply(b'{"token":"\xc3\xa9.\xc3\xa9.\xc3\xa9"}'), "endpoint_answer"),
        (Reply(b"{}"), "endpoint_answer"),
    ],
)
def test_a_service_that_gives_no_token(
    vm: AzureVm, service: Endpoint, monkeypatch: pytest.MonkeyPatch, reply: Reply, code: str
) -> None:
    vm.paravisor(monkeypatch)
    service.at("POST", MAA_SNP, reply)
    service.at("POST", MAA_TDX, reply)
    assert refused(maa(vm)).code == code


# --- clients ---


def test_answers_that_are_no_certificates() -> None:
    for body in (b"{}", b'{"vcekCert":"","certificateChain":""}', b'{"vcekCert":"x","certificateChain":"y"}'):
        with pytest.raises(CollectionFailed) as caught:
            chip_certificates(lambda _, body=body: Answer(200, body))  # type: ignore[misc]
        assert caught.value.code == "endpoint_answer"


def test_a_quote_in_either_base64url() -> None:
    def service(ask: Ask) -> Answer:
        assert ask.url == "http://169.254.169.254/acc/tdquote" and ask.fields["metadata"] == "true"
        return Answer(200, answers.pop())

    answers = [b'{"quote":"-_8A"}', b'{"quote":"-_8="}', b'{"quote":"-_8"}']
    assert [td_quote(service, bytes(1024)) for _ in range(3)] == [b"\xfb\xff", b"\xfb\xff", b"\xfb\xff\x00"]
    answers = [b'{"quote":"+/8"}']
    with pytest.raises(CollectionFailed):
        td_quote(service, bytes(1024))


def test_user_data_is_the_hash_and_zeros() -> None:
    assert user_data(HASH) == HASH + bytes(32)

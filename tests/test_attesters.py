"""The configured attester in a keeper: what it makes is what a relying party accepts, or the node does not start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attest.binding import Expected, Phase, Role
from attest.errors import AppraisalFailed, AttestError, CollectionFailed, VerificationFailed
from attest.evidence import HARDWARE, LAUNCH_ENDORSEMENT, TOKEN, Part, decode_evidence
from attest.policy import first_report_policy, parse_policy
from attest.testkit.eventlog import ccel
from attest.testkit.gcp import endorsement
from attest.testkit.intel import collateral
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tsm import TsmDirectory, snp_responder, tdx_responder
from attest.verifier import Verifier
from cube_mesh.errors import ConfigError
from cube_mesh.keeper import Keeper, keeper_from_settings
from cube_mesh.settings import Attestation, Collateral, GoogleAttester, Mesh, Settings, Upstream
from cube_mesh.tls.ca import init_ca, issue_leaf
from cube_mesh.tls.identity import parse_peer_leaf, passport_of
from tests.support.example_scheme import attest_example_scheme as example
from tests.support.example_scheme.install import install_example

AGENT = "spiffe://cube/agent/a1"


def keeper(directory: Path, **attestation: Any) -> Keeper:
    if not (directory / "ca").exists():
        init_ca(directory / "ca", "cube")
    unsafe = attestation["attester"].startswith("simulated-")
    mesh = Mesh(node_id="a1", ca_file=str(directory / "ca/ca.crt"))
    settings = Settings(mesh=mesh, attestation=Attestation(**attestation), unsafe_allow_simulated=unsafe)
    return keeper_from_settings(settings, "agent")


async def passport(one: Keeper) -> tuple[bytes, Expected, float]:
    """What is in the leaf of a keeper that has started, and what a proxy expects there."""
    await one.start()
    try:
        leaf = one.leaf
        expected = Expected(role=Role.SERVER, phase=Phase.PASSPORT, node_id=AGENT, spki_hash=leaf.spki_hash)
        return passport_of(parse_peer_leaf(leaf.cert_der)), expected, leaf.not_after - 3600
    finally:
        await one.close()


async def test_a_trust_domain_sends_its_event_log(tmp_path: Path) -> None:
    """Evidence for a channel has the log that the settings name, and a policy that asks for it accepts that alone."""
    (tmp_path / "CCEL").write_bytes(ccel())
    platform = TdxPlatform(b"t", event_log=ccel())
    rules = "require_event_log = true\nrequire_secure_boot = true\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n"
    verifier = Verifier(parse_policy(f'id = "p"\n[tdx]\n{rules}'), allow_simulated=True)
    channel: dict[str, Any] = {
        name: bytes((n,)) * 32 for n, name in enumerate(("spki_hash", "nonce", "channel_binding", "peer_spki_hash"))
    }
    expected = Expected(role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id=AGENT, **channel)
    for log, accepted in ((str(tmp_path / "CCEL"), True), ("", False)):
        with TsmDirectory(tmp_path / "report", "tdx_guest", tdx_responder(platform)) as tsm:
            one = keeper(tmp_path, attester="tdx", tsm_dir=str(tsm.path), event_log_file=log)
            await one.start()
            raw = await one.evidence(Role.SERVER, Phase.POST_HANDSHAKE, **channel)
            now = one.leaf.not_after - 3600
            await one.close()
        if accepted:
            claims = verifier.appraise(raw, expected, now=now, endorsements=[collateral()]).claims
            assert claims["eventlog.secure_boot"] == "true" and claims["eventlog.rtmrs"] == "0, 1, 2, 3"
            continue
        with pytest.raises(AttestError) as caught:
            verifier.appraise(raw, expected, now=now, endorsements=[collateral()])
        assert caught.value.code == "event_log_missing"


async def test_a_trust_domain_attests_through_configfs(tmp_path: Path) -> None:
    with TsmDirectory(tmp_path / "report", "tdx_guest", tdx_responder(TdxPlatform(b"t"))) as tsm:
        raw, expected, now = await passport(keeper(tmp_path, attester="tdx", tsm_dir=str(tsm.path)))
    verifier = Verifier(first_report_policy("tdx"), allow_simulated=True)
    result = verifier.appraise(raw, expected, now=now, endorsements=[collateral()])
    assert (result.platform, result.simulated, result.confidential) == ("simulated-tdx", True, False)
    with pytest.raises(VerificationFailed):  # a proxy in production knows no simulation
        Verifier(first_report_policy("tdx")).appraise(raw, expected, now=now, endorsements=[collateral()])


async def test_an_snp_guest_with_certificates_of_its_configuration(tmp_path: Path) -> None:
    platform = SnpPlatform(b"s")
    chain = (x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in platform.endorsements)
    (tmp_path / "chip.pem").write_bytes(b"".join(chain))
    with TsmDirectory(tmp_path / "report", "sev_guest", snp_responder(platform, with_table=False)) as tsm:
        own = {"tsm_dir": str(tsm.path), "chip_cert_file": str(tmp_path / "chip.pem")}
        raw, expected, now = await passport(keeper(tmp_path, attester="sev-snp", **own))
    result = Verifier(first_report_policy("sev-snp"), allow_simulated=True).appraise(raw, expected, now=now)
    assert result.claims["chip_id"] == platform.hwid.hex()


async def test_googles_launch_endorsement_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "endorsement.binarypb"
    sent = endorsement()
    file.write_bytes(sent)
    own: dict[str, Any] = {"gcp": GoogleAttester(launch_endorsement_file=str(file))}
    with TsmDirectory(tmp_path / "report", "tdx_guest", tdx_responder(TdxPlatform(b"t"))) as tsm:
        own["tsm_dir"] = str(tsm.path)
        raw, _, _ = await passport(keeper(tmp_path, attester="tdx", **own))
    assert decode_evidence(raw).parts[LAUNCH_ENDORSEMENT].body == sent
    for problem in (lambda: file.write_bytes(b"x"), file.unlink):
        problem()
        with pytest.raises(ConfigError, match="launch_endorsement_file"):
            keeper(tmp_path, attester="sev-snp", **own)


async def test_a_simulated_trust_domain(tmp_path: Path) -> None:
    (tmp_path / "seed").write_bytes(b"seed")
    raw, expected, now = await passport(
        keeper(tmp_path, attester="simulated-tdx", simulated_seed_file=str(tmp_path / "seed"))
    )
    verifier = Verifier(first_report_policy("tdx"), allow_simulated=True)
    assert verifier.appraise(raw, expected, now=now, endorsements=[collateral()]).simulated


@pytest.mark.parametrize(
    ("attester", "code"),
    [("tdx", "tsm_unavailable"), ("sev-snp", "device_unavailable"), ("tdx+vtpm", "tpm_failed"), ("vtpm", "tpm_failed")],
)
async def test_a_machine_without_the_device_serves_nothing(tmp_path: Path, attester: str, code: str) -> None:
    absent = {"tsm_dir": str(tmp_path / "none"), "tcti": f"swtpm:path={tmp_path}/none"}
    one = keeper(tmp_path, attester=attester, **absent)
    with pytest.raises(CollectionFailed) as caught:
        await passport(one)
    assert caught.value.code == code and not one.has_leaf


# --- a third party's scheme ---

RULES = f'id = "p"\n[schemes.example]\nkey = "{example.KEY.hex()}"\nmin_level = {{}}\n'


def proxy_settings(directory: Path, level: int, *schemes: str, cache: str = "") -> Settings:
    """A proxy whose one agent must pass a policy of the example scheme."""
    if not (directory / "proxy-p1.crt").exists():
        init_ca(directory / "ca", "cube")
        issue_leaf(directory / "ca", "proxy", "p1", directory)
    (directory / "policy.toml").write_text(RULES.format(level))
    cert, key = (str(directory / f"proxy-p1.{end}") for end in ("crt", "key"))
    target = Upstream(name="u", url="atls://127.0.0.1:1", node_id=AGENT, policy=str(directory / "policy.toml"))
    return Settings(
        mesh=Mesh(node_id="p1", ca_file=str(directory / "ca/ca.crt"), cert_file=cert, key_file=key),
        attestation=Attestation(attester="none", schemes=schemes),
        collateral=Collateral(cache_dir=cache),
        upstreams=(target,),
    )


@pytest.mark.parametrize("cached", [False, True])
async def test_a_scheme_that_both_ends_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    install_example(monkeypatch, tmp_path)
    cache = str(tmp_path / "cache") if cached else ""
    accepting = keeper_from_settings(proxy_settings(tmp_path, 3, "example", cache=cache), "proxy")
    raw, expected, _ = await passport(keeper(tmp_path, attester="scheme", schemes=("example",)))
    policy = str(tmp_path / "policy.toml")
    assert (await accepting.appraise(raw, expected, policy)).platform == "example"
    strict = keeper_from_settings(proxy_settings(tmp_path, 4, "example", cache=cache), "proxy")
    with pytest.raises(AppraisalFailed):
        await strict.appraise(raw, expected, policy)
    for one in (accepting, strict):
        await one.close()


@pytest.mark.parametrize("cache", ["", "cache"])
def test_an_installed_scheme_that_configuration_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    install_example(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match="not enabled: example") as caught:
        keeper_from_settings(proxy_settings(tmp_path, 3, cache=cache and str(tmp_path / cache)), "proxy")
    assert caught.value.key == "upstreams.u.policy"
    with pytest.raises(ConfigError) as caught:
        keeper(tmp_path, attester="scheme")
    assert caught.value.key == "attestation.schemes"


@pytest.mark.parametrize("made", [None, {}, {TOKEN: Part("x", b"y")}, {HARDWARE: Part("other", b"y")}, OSError("odd")])
async def test_a_scheme_whose_code_breaks_makes_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any
) -> None:
    install_example(monkeypatch, tmp_path)
    one = keeper(tmp_path, attester="scheme", schemes=("example",))

    def collect(_: object, data_hash: bytes) -> Any:
        if isinstance(made, OSError):
            raise made
        return made

    monkeypatch.setattr(type(one._collector._own), "collect", collect)  # type: ignore[attr-defined]
    with pytest.raises(CollectionFailed) as caught:
        await passport(one)
    assert caught.value.code == "scheme_failed" and one.quote_failures == {"scheme_failed": 1}

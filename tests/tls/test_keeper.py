"""The keeper: leaf rotation, evidence one at a time, verdicts kept only where they may be."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attest.attester import evidence_for
from attest.binding import Claims, Expected, Phase, Role
from attest.errors import AttestError, CollectionFailed
from attest.evidence import Part
from attest.verifier import Verifier
from cube_mesh.errors import ConfigError
from cube_mesh.keeper import keeper_from_settings
from cube_mesh.settings import Attestation, Domain, Settings, Upstream
from cube_mesh.settings import Mesh as MeshSettings
from cube_mesh.tls.identity import parse_peer_leaf, passport_of
from cube_mesh.tls.reasons import Refusal
from tests.tls.mesh import AGENT, POLICY, Mesh

PHASE2: dict[str, bytes] = {
    "spki_hash": b"s" * 32,
    "nonce": b"n" * 32,
    "channel_binding": b"c" * 32,
    "peer_spki_hash": b"p" * 32,
}


async def test_no_leaf_before_start_and_none_after_it_ends(mesh: Mesh) -> None:
    now = [time.time()]
    keeper = mesh.agent_keeper(clock=lambda: now[0])
    with pytest.raises(Refusal):
        _ = keeper.leaf
    await keeper.start()
    assert keeper.has_leaf
    seen = parse_peer_leaf(keeper.leaf.cert_der)
    assert str(seen.spiffe_id) == AGENT
    assert seen.not_after == int(now[0] + 3600)
    now[0] += 3600
    assert not keeper.has_leaf
    with pytest.raises(Refusal):
        _ = keeper.leaf
    await keeper.close()


async def test_the_passport_of_the_leaf_satisfies_a_verifier_and_names_the_leafs_key(mesh: Mesh) -> None:
    keeper = mesh.agent_keeper()
    await keeper.start()
    seen = parse_peer_leaf(keeper.leaf.cert_der)
    expected = Expected(role=Role.SERVER, phase=Phase.PASSPORT, node_id=AGENT, spki_hash=keeper.leaf.spki_hash)
    result = await mesh.proxy_keeper().appraise(passport_of(seen), expected, POLICY)
    assert result.platform == "vtpm"
    await keeper.close()


async def test_the_leaf_rotates_at_half_of_its_life_with_a_new_key(mesh: Mesh) -> None:
    keeper = mesh.agent_keeper(leaf_lifetime_s=3.0)
    await keeper.start()
    first = keeper.leaf
    async with asyncio.timeout(5):
        while keeper.leaf is first:
            await asyncio.sleep(0.01)
    assert keeper.leaf.spki_hash != first.spki_hash
    await keeper.close()


async def test_a_renewal_that_fails_leaves_the_old_leaf_and_is_tried_again(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cube_mesh.keeper._FIRST_RETRY_S", 0.02)
    failing = _Failing(mesh, fail_from=2, until=4)
    keeper = mesh.agent_keeper(failing, leaf_lifetime_s=3.0)
    await keeper.start()
    first = keeper.leaf
    async with asyncio.timeout(5):
        while failing.calls < 3:
            assert keeper.leaf is first
            await asyncio.sleep(0.005)
        while keeper.leaf is first:
            await asyncio.sleep(0.005)
    await keeper.close()


class _Failing:
    scheme = "vtpm"

    def __init__(self, mesh: Mesh, fail_from: int, until: int) -> None:
        self._tpm, self._fails, self.calls = mesh.tpm, range(fail_from, until), 0

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        self.calls += 1
        if self.calls in self._fails:
            raise CollectionFailed("device busy")
        return self._tpm.parts(data_hash)


class _Slow:
    """Counts how many are inside at once, off the event loop."""

    scheme = "vtpm"

    def __init__(self, mesh: Mesh) -> None:
        self._tpm, self._inside = mesh.tpm, 0
        self.most, self.calls = 0, 0
        self.threads: set[str] = set()

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        self._inside += 1
        self.calls += 1
        self.most = max(self.most, self._inside)
        self.threads.add(threading.current_thread().name)
        time.sleep(0.02)
        self._inside -= 1
        return self._tpm.parts(data_hash)


async def test_one_quote_at_a_time_and_none_for_who_gave_up(mesh: Mesh) -> None:
    slow = _Slow(mesh)
    keeper = mesh.agent_keeper(slow)
    asked = [asyncio.ensure_future(keeper.evidence(Role.SERVER, Phase.POST_HANDSHAKE, **PHASE2)) for _ in range(6)]
    await asyncio.sleep(0.005)
    for late in asked[3:]:
        late.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert (slow.most, slow.calls) == (1, 3)
    assert threading.main_thread().name not in slow.threads
    await keeper.close()


class _Counting(Verifier):
    calls = 0

    def appraise(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().appraise(*args, **kwargs)


async def test_passports_are_judged_once_and_fresh_evidence_every_time(mesh: Mesh) -> None:
    now = [time.time()]
    proxy = mesh.proxy_keeper(clock=lambda: now[0])
    counting = _Counting(mesh.verifier().policy)
    proxy._verifiers[POLICY] = counting
    claims = Claims(
        role=Role.SERVER,
        phase=Phase.PASSPORT,
        node_id=AGENT,
        not_after=int(now[0]) + 60,
        boot_id=bytes(16),
        spki_hash=b"s" * 32,
    )
    passport = evidence_for(mesh.tpm, claims)
    expected = Expected(role=Role.SERVER, phase=Phase.PASSPORT, node_id=AGENT, spki_hash=b"s" * 32)
    for _ in range(3):
        await proxy.appraise(passport, expected, POLICY)
    assert counting.calls == 1
    with pytest.raises(AttestError):  # the same bytes for another key are another question
        await proxy.appraise(passport, msgspec.structs.replace(expected, spki_hash=b"t" * 32), POLICY)
    with pytest.raises(AttestError):
        await proxy.appraise(passport + b"\x00", expected, POLICY)
    now[0] += 61
    with pytest.raises(AttestError):
        await proxy.appraise(passport, expected, POLICY)
    now[0] -= 61
    counting.calls = 0
    fresh = evidence_for(mesh.tpm, msgspec.structs.replace(claims, phase=Phase.POST_HANDSHAKE, **PHASE2))
    expected2 = Expected(role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id=AGENT, **PHASE2)
    for _ in range(2):
        await proxy.appraise(fresh, expected2, POLICY)
    assert counting.calls == 2


async def test_a_policy_that_is_not_there_refuses(mesh: Mesh) -> None:
    expected = Expected(role=Role.SERVER, phase=Phase.PASSPORT, node_id=AGENT, spki_hash=b"s" * 32)
    with pytest.raises(AttestError, match="no evidence policy"):
        await mesh.proxy_keeper().appraise(b"", expected, "other.toml")


# --- from settings ---


@pytest.fixture
def proxy_settings(mesh: Mesh, tmp_path: Path) -> Settings:
    mesh.issue("proxy", "p1")
    (tmp_path / "policy.toml").write_text(mesh.default_policy())
    target = Upstream(name="u", url="atls://127.0.0.1:1", node_id=AGENT, policy=str(tmp_path / "policy.toml"))
    return Settings(
        mesh=MeshSettings(
            node_id="p1",
            ca_file=str(tmp_path / "ca" / "ca.crt"),
            cert_file=str(tmp_path / "proxy-p1.crt"),
            key_file=str(tmp_path / "proxy-p1.key"),
        ),
        attestation=Attestation(attester="none"),
        upstreams=(target,),
    )


def _changed(settings: Settings, section: str, **values: Any) -> Settings:
    return msgspec.structs.replace(settings, **{section: msgspec.structs.replace(getattr(settings, section), **values)})


def test_a_proxys_keeper_from_its_files(proxy_settings: Settings) -> None:
    keeper = keeper_from_settings(proxy_settings, "proxy")
    assert str(keeper.node_id) == "spiffe://cube/proxy/p1"
    assert keeper.has_leaf


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("mesh", {"node_id": ""}, "mesh.node_id"),
        ("mesh", {"node_id": "p2"}, "mesh.node_id"),
        ("mesh", {"trust_domain": "Other"}, "mesh.node_id"),
        ("mesh", {"ca_file": ""}, "mesh.ca_file"),
        ("mesh", {"cert_file": ""}, "mesh.cert_file"),
        ("mesh", {"key_file": ""}, "mesh.cert_file"),
        ("attestation", {"attester": ""}, "attestation.attester"),
        ("attestation", {"attester": "vtpm"}, "attestation.attester"),
        ("attestation", {"leaf_lifetime_s": 7200.0}, "attestation.leaf_lifetime_s"),
    ],
)
def test_what_a_proxys_settings_lack(proxy_settings: Settings, section: str, values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keeper_from_settings(_changed(proxy_settings, section, **values), "proxy")
    assert caught.value.key == key


def test_a_leaf_of_another_ca_is_found_at_the_start(mesh: Mesh, proxy_settings: Settings, tmp_path: Path) -> None:
    from cube_mesh.tls import ca

    ca.init_ca(tmp_path / "other", "cube")
    with pytest.raises(ConfigError, match="chain"):
        keeper_from_settings(_changed(proxy_settings, "mesh", ca_file=str(tmp_path / "other" / "ca.crt")), "proxy")


def test_a_policy_file_that_is_wrong_is_found_at_the_start(proxy_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('id = "empty"\n')
    with pytest.raises(ConfigError) as caught:
        keeper_from_settings(proxy_settings, "proxy")
    assert caught.value.key == "upstreams.u.policy"


def _with_own_policy(settings: Settings, file: Path) -> Settings:
    domain = Domain(id="d0000000-0000-4000-8000-000000000001", evidence_policy=str(file))
    return _changed(settings, "identity", domains=(domain,))


def test_a_domains_policy_file_is_read_at_the_start(mesh: Mesh, proxy_settings: Settings, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    with pytest.raises(ConfigError) as caught:
        keeper_from_settings(_with_own_policy(proxy_settings, own), "proxy")
    assert caught.value.key == "identity.domains.d0000000-0000-4000-8000-000000000001.evidence_policy"
    own.write_text(mesh.default_policy())
    assert keeper_from_settings(_with_own_policy(proxy_settings, own), "proxy").has_leaf


def test_a_domains_policy_needs_sessions(mesh: Mesh, proxy_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(mesh.default_policy())
    quote = msgspec.structs.replace(proxy_settings.upstreams[0], mode="quote")
    settings = msgspec.structs.replace(proxy_settings, upstreams=(quote,))
    assert keeper_from_settings(settings, "proxy").has_leaf
    with pytest.raises(ConfigError) as caught:
        keeper_from_settings(_with_own_policy(settings, tmp_path / "own.toml"), "proxy")
    assert caught.value.key == "upstreams.u.mode"


@pytest.mark.parametrize("attester", ["", "none"])
def test_an_agent_must_attest(proxy_settings: Settings, attester: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keeper_from_settings(_changed(proxy_settings, "attestation", attester=attester), "agent")
    assert caught.value.key == "attestation.attester"


def test_simulated_evidence_is_asked_for_by_name(proxy_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "seed").write_bytes(b"sixteen bytes or more")
    chosen = _changed(
        proxy_settings, "attestation", attester="simulated-sev-snp", simulated_seed_file=str(tmp_path / "seed")
    )
    with pytest.raises(ConfigError, match="unsafe_allow_simulated"):
        keeper_from_settings(chosen, "agent")
    keeper_from_settings(msgspec.structs.replace(chosen, unsafe_allow_simulated=True), "agent")

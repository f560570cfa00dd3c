"""A third party's scheme: installed from its own package, enabled by name, never in place of a built-in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from attest.attester import evidence_for
from attest.errors import AppraisalFailed, AttestError, CollectionFailed, UnsupportedEvidence, VerificationFailed
from attest.evidence import HARDWARE, TOKEN, Part
from attest.plugins import BUILT_IN, GROUP, SchemeCollector, check_scheme, judge, load_scheme
from attest.policy import parse_policy
from attest.verifier import Verifier

from ..support.example_scheme import attest_example_scheme as example
from .conftest import CLAIMS, NOW

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "support" / "example_scheme"
RULES = f'id = "p"\n[schemes.example]\nkey = "{example.KEY.hex()}"\nmin_level = {{}}\n'
SCHEME = example.ExampleScheme()


def _raw() -> bytes:
    class Collector:
        scheme = "example"
        parts = staticmethod(SCHEME.collect)

    return evidence_for(Collector(), CLAIMS)


def test_through_the_door(expected: Any) -> None:
    result = Verifier(parse_policy(RULES.format(3)), schemes=[SCHEME]).appraise(_raw(), expected, now=NOW)
    assert (result.platform, result.confidential) == ("example", False)
    assert result.claims == {"example.level": "3"} and result.expires == NOW + 60
    with pytest.raises(AppraisalFailed) as caught:
        Verifier(parse_policy(RULES.format(4)), schemes=[SCHEME]).appraise(_raw(), expected, now=NOW)
    assert [m.code for m in caught.value.mismatches] == ["level"]


def test_what_policy_does_not_name_is_refused_although_it_is_given(expected: Any) -> None:
    other = parse_policy('id = "o"\n[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n')
    with pytest.raises(UnsupportedEvidence) as caught:
        Verifier(other, schemes=[SCHEME]).appraise(_raw(), expected, now=NOW)
    assert caught.value.code == "part_unknown"
    with pytest.raises(UnsupportedEvidence) as caught:
        Verifier(parse_policy(RULES.format(1)))
    assert caught.value.code == "scheme_not_enabled"


def test_evidence_of_another_channel(expected: Any) -> None:
    with pytest.raises(VerificationFailed) as caught:
        judge(SCHEME, example.evidence(b"x" * 32), bound=b"y" * 32, rules=None, endorsements=(), now=NOW)
    assert caught.value.code == "example_bound"


@pytest.mark.parametrize("answer", [None, ValueError("odd"), KeyError("key")])
def test_a_scheme_that_breaks_is_a_refusal(expected: Any, answer: object) -> None:
    class Broken(example.ExampleScheme):
        def verify(self, *_: object, **__: object) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    with pytest.raises(VerificationFailed) as caught:
        Verifier(parse_policy(RULES.format(1)), schemes=[Broken()]).appraise(_raw(), expected, now=NOW)
    assert caught.value.code == "scheme_failed"


def test_a_scheme_as_an_attester() -> None:
    part = SchemeCollector(SCHEME).parts(b"x" * 32)[HARDWARE]
    assert (part.media_type, part.body) == (SCHEME.media_type, example.evidence(b"x" * 32))


OTHER_TYPE, OTHER_KEY = {HARDWARE: Part("text/plain", b"x")}, {TOKEN: Part(SCHEME.media_type, b"x")}


@pytest.mark.parametrize("answer", [None, {}, {HARDWARE: b"x"}, OTHER_TYPE, OTHER_KEY, ValueError("odd")])
def test_a_scheme_that_makes_something_else(answer: object) -> None:
    class Broken(example.ExampleScheme):
        def collect(self, data_hash: bytes) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    with pytest.raises(CollectionFailed) as caught:
        SchemeCollector(Broken()).parts(b"x" * 32)
    assert caught.value.code == "scheme_failed"


def test_a_scheme_that_says_itself_why_it_fails() -> None:
    class Busy(example.ExampleScheme):
        def collect(self, data_hash: bytes) -> Any:
            raise CollectionFailed("busy", code="example_busy")

    with pytest.raises(CollectionFailed) as caught:
        SchemeCollector(Busy()).parts(b"x" * 32)
    assert caught.value.code == "example_busy"


@pytest.mark.parametrize(
    "text",
    [
        RULES.format(1) + "[tdx]\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n",
        RULES.format(1) + "[schemes.more]\nkey = 1\n",
        RULES.format(1) + "[none]\naccept_unattested_clients = true\n",
        'id = "p"\n[schemes.example]\n',
        'id = "p"\nschemes = "example"\n',
    ],
)
def test_policies_wrongly(text: str) -> None:
    with pytest.raises(AttestError) as caught:
        parse_policy(text)
    assert caught.value.code == "policy_format"


def _point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


GOOD = "tests.support.example_scheme.attest_example_scheme:ExampleScheme"


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_name_is_never_loaded(name: str) -> None:
    with pytest.raises(UnsupportedEvidence) as caught:
        load_scheme(name, [_point(name, GOOD)])
    assert caught.value.code == "scheme_built_in"
    with pytest.raises(UnsupportedEvidence):
        check_scheme(name, SCHEME)


@pytest.mark.parametrize(
    ("points", "code"),
    [
        ([], "scheme_unknown"),
        ([_point("other", GOOD)], "scheme_unknown"),
        ([_point("example", GOOD)] * 2, "scheme_ambiguous"),
        ([_point("example", "no_such_module:X")], "scheme_broken"),
        ([_point("example", "json:nothing")], "scheme_broken"),
        ([_point("example", "json:loads")], "scheme_broken"),
    ],
)
def test_what_does_not_load(points: list[EntryPoint], code: str) -> None:
    with pytest.raises(UnsupportedEvidence) as caught:
        load_scheme("example", points)
    assert caught.value.code == code


def test_another_name_than_its_entry_point() -> None:
    with pytest.raises(UnsupportedEvidence):
        load_scheme("renamed", [_point("renamed", GOOD)])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built and installed by pip from its own directory into a directory that only this test sees."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "attest_example_scheme.py"):
        (source / name).write_bytes((PACKAGE / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", str(target), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    return target


def _cli(site: Path | None, *arguments: object) -> tuple[int, str]:
    path = os.pathsep.join([str(ROOT), *([str(site)] if site else [])])
    done = subprocess.run(
        [sys.executable, "-m", "cube_mesh", "attest", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200", "TERM": "dumb"},
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_installed_and_named(installed: Path, tmp_path: Path) -> None:
    file, policy = tmp_path / "e", tmp_path / "p.toml"
    file.write_bytes(example.evidence(b"n" * 32))
    policy.write_text(RULES.format(3))
    named = ("verify", "--scheme", "example", "--evidence", file, "--nonce", (b"n" * 32).hex(), "--json")
    code, output = _cli(installed, *named, "--policy", policy)
    answer = json.loads(output)
    assert (code, answer["verdict"], answer["policy_id"], answer["claims"]) == (0, "accept", "p", {"level": "3"})
    policy.write_text(RULES.format(9))
    assert _cli(installed, *named, "--policy", policy)[0] == 1
    code, output = _cli(None, *named)
    assert code == 2 and "no installed package has a scheme example" in output


def test_installed_it_replaces_nothing(installed: Path, tmp_path: Path) -> None:
    """The package also claims "tdx": the built-in scheme answers, to which these bytes are no quote."""
    file = tmp_path / "e"
    file.write_bytes(example.evidence(b"n" * 32))
    code, output = _cli(installed, "verify", "--scheme", "tdx", "--evidence", file, "--json")
    assert code != 0 and "example" not in output

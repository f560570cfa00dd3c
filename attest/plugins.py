"""Schemes of third parties: what one has to offer, and how the one that was named is found.

A package declares ``[project.entry-points."attest.schemes"]`` with a name and an object of the form of :class:`Scheme`.
Installing it enables nothing: it is loaded when configuration or the caller names it, and it can never stand in for a
scheme of this library. What it says, it says on its own: the library checks shapes, not truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from attest.errors import AttestError, CollectionFailed, Mismatch, UnsupportedEvidence, VerificationFailed
from attest.evidence import HARDWARE, Part

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["BUILT_IN", "GROUP", "Scheme", "SchemeCollector", "SchemeResult", "check_scheme", "judge", "load_scheme"]

GROUP = "attest.schemes"
BUILT_IN = frozenset({"sev-snp", "tdx", "vtpm", "azure", "maa", "gcp", "bundle", "none"})


class SchemeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheme found in genuine evidence. ``claims`` are verified; ``mismatches``: rules that do not hold.
    ``expires``: Unix seconds, None when nothing ends. Evidence that is not genuine is an AttestError.
    """

    claims: dict[str, str]
    mismatches: tuple[Mismatch, ...] = ()
    expires: float | None = None
    confidential: bool = False


@runtime_checkable
class Scheme(Protocol):
    """A kind of evidence. ``media_type``: of its one part in a collection, which stands where hardware evidence does.

    ``collect`` makes the parts over a 32-byte data hash. ``needs`` names, for a person, what verification of this
    evidence wants beside it. ``verify`` judges: ``bound`` is the 32-byte hash that the evidence must speak for (None:
    the caller has none to compare), ``rules`` the policy's ``[schemes.NAME]`` (None: verify only). No I/O in the last
    two, and no clock: ``now`` is Unix seconds.
    """

    name: str
    media_type: str

    def collect(self, data_hash: bytes) -> dict[int, Part]: ...

    def needs(self, evidence: bytes) -> tuple[str, ...]: ...

    def verify(
        self,
        evidence: bytes,
        *,
        bound: bytes | None,
        rules: Mapping[str, Any] | None,
        endorsements: Sequence[bytes],
        now: float,
    ) -> SchemeResult: ...


class SchemeCollector:
    """A scheme as an attester's collector (``attester.Collector``). Whatever goes wrong in its code, and parts that no
    verifier would take, are CollectionFailed ("scheme_failed").
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme, self._own = scheme.name, scheme

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        """The scheme's parts over ``data_hash`` (32 bytes): its one, where hardware evidence stands."""
        try:
            made = self._own.collect(data_hash)
        except CollectionFailed:
            raise
        except Exception as error:  # foreign code: its mistakes are the attester's failure, not the node's
            raise CollectionFailed(f"scheme {self.scheme}: {error!r}", code="scheme_failed") from error
        part = made.get(HARDWARE) if isinstance(made, dict) else None
        if not isinstance(part, Part) or set(made) != {HARDWARE} or part.media_type != self._own.media_type:
            raise CollectionFailed(f"scheme {self.scheme} made other parts than its own", code="scheme_failed")
        return made


def judge(
    scheme: Scheme,
    evidence: bytes,
    *,
    bound: bytes | None,
    rules: Mapping[str, Any] | None,
    endorsements: Sequence[bytes],
    now: float,
) -> SchemeResult:
    """The scheme's verdict. Whatever goes wrong in its code is a refusal (VerificationFailed, "scheme_failed")."""
    try:
        found = scheme.verify(evidence, bound=bound, rules=rules, endorsements=endorsements, now=now)
    except AttestError:
        raise
    except Exception as error:  # foreign code: its mistakes must not pass for anything but a no
        raise VerificationFailed(f"scheme {scheme.name}: {error!r}", code="scheme_failed") from error
    if not isinstance(found, SchemeResult):
        raise VerificationFailed(f"scheme {scheme.name} gave no result", code="scheme_failed")
    return found


def load_scheme(name: str, points: Iterable[EntryPoint] | None = None) -> Scheme:
    """The installed scheme of that name. UnsupportedEvidence for a built-in name, none, several, or another form.

    ``points`` stands in for the installed entry points in tests.
    """
    from importlib.metadata import entry_points  # slow to import, and only here wanted

    if name in BUILT_IN:
        raise UnsupportedEvidence(f"{name} is built in: no package can replace it", code="scheme_built_in")
    found = [p for p in (entry_points(group=GROUP) if points is None else points) if p.name == name]
    if len(found) != 1:
        what = "no installed package has" if not found else f"{len(found)} installed packages have"
        raise UnsupportedEvidence(f"{what} a scheme {name}", code="scheme_ambiguous" if found else "scheme_unknown")
    try:
        loaded = found[0].load()
        scheme = loaded() if isinstance(loaded, type) else loaded
    except (ImportError, AttributeError, TypeError) as error:
        raise UnsupportedEvidence(f"scheme {name} does not load: {error}", code="scheme_broken") from error
    return check_scheme(name, scheme)


def check_scheme(name: str, scheme: object) -> Scheme:
    """The object, when it has the form of a scheme of that name."""
    if name in BUILT_IN or not isinstance(scheme, Scheme) or scheme.name != name or not scheme.media_type:
        raise UnsupportedEvidence(f"{name}: not the form of a scheme of that name", code="scheme_broken")
    return scheme

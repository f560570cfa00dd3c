"""Intel's TCB info and QE identity: their form, the level that fits a platform, and what several levels come to.

Intel PCS API v4 "Get TDX TCB Info", "Get TDX QE Identity". Decides by data only: signatures are ``verify``'s matter.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Annotated, TypeVar

import msgspec

from attest.errors import MalformedEvidence, UnsupportedEvidence, VerificationFailed
from attest.schemes.tdx.abi import QeReport, TdReport
from attest.schemes.tdx.pck import PckInfo

__all__ = [
    "STATUSES",
    "QeIdentity",
    "TcbInfo",
    "TcbState",
    "converge",
    "current_state",
    "decode_qe_identity",
    "decode_tcb_info",
    "module_state",
    "platform_state",
    "qe_state",
]

Svn = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Time = Annotated[dt.datetime, msgspec.Meta(tz=True)]
Hex2 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{4}\Z")]
Hex4 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{8}\Z")]
Hex6 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{12}\Z")]
Hex8 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{16}\Z")]
Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{32}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]
Hex48 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{96}\Z")]

# Each status is a set of faults, so that the union of several states' faults is the state of all of them.
_FAULTS: dict[str, frozenset[str]] = {
    "UpToDate": frozenset(),
    "SWHardeningNeeded": frozenset({"software"}),
    "ConfigurationNeeded": frozenset({"configuration"}),
    "ConfigurationAndSWHardeningNeeded": frozenset({"software", "configuration"}),
    "OutOfDate": frozenset({"old"}),
    "OutOfDateConfigurationNeeded": frozenset({"old", "configuration"}),
    "Revoked": frozenset({"revoked"}),
}
_STATUS = {faults: status for status, faults in _FAULTS.items()}
STATUSES = tuple(_FAULTS)
_SGX_DEBUG = 1 << 1  # of an enclave's ATTRIBUTES (Intel SDM, volume 3D)
# What remains of being old where starting the trust domain again is all that it takes.
_RELAUNCH = {
    "OutOfDate": "TDRelaunchAdvised",
    "OutOfDateConfigurationNeeded": "TDRelaunchAdvisedConfigurationNeeded",
}


class _Record(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Base of what Intel signs. Members that we do not know are Intel's to add, and are not used."""


class Component(_Record, frozen=True, kw_only=True, rename="camel"):
    svn: Svn


class _PlatformTcb(_Record, frozen=True, kw_only=True, rename="camel"):
    sgx: Annotated[tuple[Component, ...], msgspec.Meta(min_length=16, max_length=16)] = msgspec.field(
        name="sgxtcbcomponents"
    )
    tdx: Annotated[tuple[Component, ...], msgspec.Meta(min_length=16, max_length=16)] = msgspec.field(
        name="tdxtcbcomponents"
    )
    pce_svn: Svn = msgspec.field(name="pcesvn")


class _IsvTcb(_Record, frozen=True, kw_only=True, rename="camel"):
    isv_svn: Svn = msgspec.field(name="isvsvn")


class _Level(_Record, frozen=True, kw_only=True, rename="camel"):
    tcb_date: Time
    tcb_status: str
    advisories: tuple[str, ...] = msgspec.field(name="advisoryIDs", default=())


class _PlatformLevel(_Level, frozen=True, kw_only=True, rename="camel"):
    tcb: _PlatformTcb


class _IsvLevel(_Level, frozen=True, kw_only=True, rename="camel"):
    tcb: _IsvTcb


class _Module(_Record, frozen=True, kw_only=True, rename="camel"):
    mr_signer: Hex48 = msgspec.field(name="mrsigner")
    attributes: Hex8
    attributes_mask: Hex8


class _ModuleIdentity(_Module, frozen=True, kw_only=True, rename="camel"):
    id: str
    tcb_levels: tuple[_IsvLevel, ...]


class _Dated(_Record, frozen=True, kw_only=True, rename="camel"):
    id: str
    version: int
    issue_date: Time
    next_update: Time
    tcb_evaluation_data_number: Annotated[int, msgspec.Meta(ge=0)]


_T = TypeVar("_T", bound=_Dated)


class TcbInfo(_Dated, frozen=True, kw_only=True, rename="camel"):
    """TCB info of one family of platforms (FMSPC)."""

    fmspc: Hex6
    pce_id: Hex2
    tcb_type: int
    tdx_module: _Module
    tdx_module_identities: tuple[_ModuleIdentity, ...] = ()
    tcb_levels: tuple[_PlatformLevel, ...]


class QeIdentity(_Dated, frozen=True, kw_only=True, rename="camel"):
    """Identity of Intel's quoting enclave for TDX."""

    misc_select: Hex4 = msgspec.field(name="miscselect")
    misc_select_mask: Hex4 = msgspec.field(name="miscselectMask")
    attributes: Hex16
    attributes_mask: Hex16
    mr_signer: Hex32 = msgspec.field(name="mrsigner")
    isv_prod_id: Svn = msgspec.field(name="isvprodid")
    tcb_levels: tuple[_IsvLevel, ...]


class TcbState(msgspec.Struct, frozen=True):
    """A status of Intel's with its advisories, and the date (Unix seconds) of the oldest level behind it.

    One of :data:`STATUSES`, which levels have, or what :func:`current_state` makes of them.
    """

    status: str
    advisories: tuple[str, ...]
    date: float


@lru_cache(maxsize=32)
def decode_tcb_info(raw: bytes) -> TcbInfo:
    """TCB info for TDX, version 3. Raises MalformedEvidence, ``tcb_info_kind`` for another kind."""
    info = _decode(raw, TcbInfo, "TCB info")
    if (info.id, info.version, info.tcb_type) != ("TDX", 3, 0):
        raise MalformedEvidence(
            f"TCB info of {info.id} version {info.version} type {info.tcb_type}, not TDX version 3 type 0",
            code="tcb_info_kind",
        )
    return info


@lru_cache(maxsize=32)
def decode_qe_identity(raw: bytes) -> QeIdentity:
    """QE identity for TDX, version 2. Raises MalformedEvidence, ``qe_identity_kind`` for another kind."""
    identity = _decode(raw, QeIdentity, "QE identity")
    if (identity.id, identity.version) != ("TD_QE", 2):
        raise MalformedEvidence(
            f"QE identity of {identity.id} version {identity.version}, not TD_QE version 2", code="qe_identity_kind"
        )
    return identity


def _decode(raw: bytes, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, RecursionError) as error:  # deep nesting, in a member that nobody knows
        raise MalformedEvidence(f"{name}: {error}", code="malformed_collateral") from None


def qe_state(report: QeReport, identity: QeIdentity) -> TcbState:
    """The quoting enclave is Intel's, and its level. Raises VerificationFailed (``qe_*``)."""
    if report.attributes[0] & _SGX_DEBUG:  # whatever the identity's mask leaves out
        raise VerificationFailed("quoting enclave: in debug mode", code="qe_debug")
    for name, actual, expected, mask in (
        ("misc_select", report.misc_select, identity.misc_select, identity.misc_select_mask),
        ("attributes", report.attributes, identity.attributes, identity.attributes_mask),
    ):
        if not _masked_equal(actual, expected, mask):
            raise VerificationFailed(f"quoting enclave: {name} is {actual.hex()}", code=f"qe_{name}")
    if report.mr_signer != bytes.fromhex(identity.mr_signer):
        raise VerificationFailed(f"quoting enclave: signed by {report.mr_signer.hex()}", code="qe_mr_signer")
    if report.isv_prod_id != identity.isv_prod_id:
        raise VerificationFailed(f"quoting enclave: product {report.isv_prod_id}", code="qe_isv_prod_id")
    return _isv_state(report.isv_svn, identity.tcb_levels, "qe_tcb_level")


def module_state(report: TdReport, info: TcbInfo) -> TcbState | None:
    """The TDX module is Intel's, and its level; None for modules older than 1.5, whose level is the platform's.

    TEE_TCB_SVN[1] is the module's major version, which names the identity that fits; [0] is its security version.
    Raises VerificationFailed (``tdx_module_*``).
    """
    svn, version = report.tee_tcb_svn[:2]
    module: _Module = info.tdx_module
    if version > 0:
        wanted = f"TDX_{version:02X}"
        found = [identity for identity in info.tdx_module_identities if identity.id.upper() == wanted]
        if len(found) != 1:
            raise VerificationFailed(f"{len(found)} identities of TDX module {wanted}", code="tdx_module_unknown")
        module = found[0]
    if report.mr_signer_seam != bytes.fromhex(module.mr_signer):
        raise VerificationFailed(f"TDX module signed by {report.mr_signer_seam.hex()}", code="tdx_module_mr_signer")
    if not _masked_equal(report.seam_attributes, module.attributes, module.attributes_mask):
        raise VerificationFailed(f"TDX module: attributes {report.seam_attributes.hex()}", code="tdx_module_attributes")
    return _isv_state(svn, module.tcb_levels, "tdx_module_level") if isinstance(module, _ModuleIdentity) else None


def platform_state(pck: PckInfo, report: TdReport, info: TcbInfo) -> TcbState:
    """The first level whose components the platform reaches, all of them. Raises VerificationFailed (``tcb_level``)."""
    # From module 1.5 on, the first two TDX components are the module's version, which has levels of its own.
    skip = 2 if report.tee_tcb_svn[1] > 0 else 0
    for level in info.tcb_levels:
        tcb = level.tcb
        if (
            pck.pce_svn >= tcb.pce_svn
            and _reaches(pck.component_svns, tcb.sgx)
            and _reaches(report.tee_tcb_svn[skip:], tcb.tdx[skip:])
        ):
            return _state(level)
    raise VerificationFailed("the platform reaches no TCB level that Intel lists", code="tcb_level")


def current_state(
    launched: TcbState, pck: PckInfo, report: TdReport, info: TcbInfo, module: TcbState | None, qe: TcbState
) -> TcbState:
    """``launched``, which all parts of a launch come to, together with what the platform runs by now.

    A host can load a newer TDX module under running domains: TEE_TCB_SVN is of the launch, and TD 1.5 reports say in
    TEE_TCB_SVN_2 what runs now. That must be at a level, too. Where nothing but the launch is outdated, by its
    ``module``, "OutOfDate" becomes "TDRelaunchAdvised", as in Intel's library from DCAP 1.20 on. Raises
    VerificationFailed (``tcb_level``, ``tdx_module_*``).
    """
    if report.tee_tcb_svn2 in (None, report.tee_tcb_svn):
        return launched
    now = msgspec.structs.replace(report, tee_tcb_svn=report.tee_tcb_svn2)
    module_now = module_state(now, info)
    current = [platform_state(pck, now, info), *([] if module_now is None else [module_now])]
    state = converge([launched, *current])
    behind = any(_FAULTS[part.status] & {"old", "revoked"} for part in (qe, *current))
    if module is None or module.status != "OutOfDate" or behind:
        return state
    return msgspec.structs.replace(state, status=_RELAUNCH.get(state.status, state.status))


def converge(states: Sequence[TcbState]) -> TcbState:
    """What several states come to: the union of their faults and advisories, and their oldest date.

    Old firmware includes unhardened software, and a revoked part everything else.
    """
    faults = frozenset[str]().union(*(_FAULTS[state.status] for state in states))
    if "revoked" in faults:
        faults = frozenset({"revoked"})
    elif "old" in faults:
        faults -= {"software"}
    advisories = sorted({advisory for state in states for advisory in state.advisories})
    return TcbState(_STATUS[faults], tuple(advisories), min(state.date for state in states))


def _isv_state(svn: int, levels: Collection[_IsvLevel], code: str) -> TcbState:
    for level in levels:
        if svn >= level.tcb.isv_svn:
            return _state(level)
    raise VerificationFailed(f"security version {svn} reaches no TCB level that Intel lists", code=code)


def _state(level: _Level) -> TcbState:
    if level.tcb_status not in _FAULTS:
        raise UnsupportedEvidence(f"TCB status {level.tcb_status!r} is unknown", code="tcb_status_unknown")
    return TcbState(level.tcb_status, level.advisories, level.tcb_date.timestamp())


def _reaches(actual: Sequence[int], components: Sequence[Component]) -> bool:
    return all(svn >= component.svn for svn, component in zip(actual, components, strict=True))


def _masked_equal(actual: bytes, expected: str, mask: str) -> bool:
    """``actual & mask == expected``, each as the bytes that Intel writes in hex."""
    masked = int.from_bytes(actual, "big") & int(mask, 16)
    return masked == int(expected, 16)

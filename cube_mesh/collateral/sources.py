"""Where each item is published and what the answer looks like: addresses and answers as values, nothing is fetched.

AMD 57230 §4 (KDS), Intel PCS API v4, OpenID Connect Discovery 1.0 §4, Azure's THIM.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from attest.items import Item
from cube_mesh.errors import ConfigError
from cube_mesh.https import Answer, check_url

__all__ = ["Request", "Sources", "issuer_chain", "jwks_address"]

_CHAIN_FIELD = {
    "intel-tcb-info": "tcb-info-issuer-chain",
    "intel-qe-identity": "sgx-enclave-identity-issuer-chain",
    "intel-pck-crl": "sgx-pck-crl-issuer-chain",
}
_SPL = ("blSPL", "teeSPL", "snpSPL", "ucodeSPL")


class Request(msgspec.Struct, frozen=True):
    """What to GET; ``fields`` go with it. A ``discovery`` answer only says where the item is."""

    url: str
    fields: dict[str, str] = {}
    discovery: bool = False


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Base addresses of the vendors or of mirrors that answer alike. ``early_tcb``: ask Intel for ``update=early``."""

    amd_url: str = "https://kdsintf.amd.com"
    intel_url: str = "https://api.trustedservices.intel.com"
    intel_root_crl_url: str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
    thim_url: str = "http://169.254.169.254/metadata/THIM/amd/certification"
    early_tcb: bool = False

    def check(self) -> None:
        """ConfigError for an address that is neither https nor on this machine."""
        for name in ("amd_url", "intel_url", "intel_root_crl_url", "thim_url"):
            check_url(getattr(self, name), f"collateral.{name}", link_local=name == "thim_url")

    def request(self, item: Item) -> Request:
        """Where to ask for ``item``."""
        amd, intel = self.amd_url.rstrip("/"), self.intel_url.rstrip("/")
        update = "early" if self.early_tcb else "standard"
        match item.kind, item.key.split("/"):
            case "amd-vcek", [product, hwid, tcb]:
                levels = tcb.split(".")
                names = ("fmcSPL", *_SPL) if len(levels) == 5 else _SPL
                query = "&".join(f"{name}={int(level):02d}" for name, level in zip(names, levels, strict=True))
                return Request(f"{amd}/vcek/v1/{product}/{hwid}?{query}")
            case "amd-chain", [product, leaf]:
                return Request(f"{amd}/{leaf}/v1/{product}/cert_chain")
            case "amd-crl", [product]:
                return Request(f"{amd}/vcek/v1/{product}/crl")
            case "azure-thim", _:
                return Request(self.thim_url, {"metadata": "true"})
            case "intel-tcb-info", [fmspc]:
                return Request(f"{intel}/tdx/certification/v4/tcb?fmspc={fmspc}&update={update}")
            case "intel-qe-identity", _:
                return Request(f"{intel}/tdx/certification/v4/qe/identity?update={update}")
            case "intel-pck-crl", [ca]:
                return Request(f"{intel}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der")
            case "intel-root-crl", _:
                return Request(self.intel_root_crl_url)
        check_url(item.key, "collateral.token_issuers")
        return Request(f"{item.key.rstrip('/')}/.well-known/openid-configuration", discovery=True)


def issuer_chain(item: Item, answer: Answer) -> str:
    """The PEM chain that Intel sends in a header field, percent-encoded; empty for items that have none."""
    return unquote(answer.fields.get(_CHAIN_FIELD.get(item.kind, ""), ""))


def jwks_address(item: Item, document: bytes) -> str:
    """The ``jwks_uri`` of an issuer's own discovery document, which must name that very issuer. Raises ValueError.

    Another host may hold the keys (Google's does), but over https only; plain http is for an issuer on this machine
    that names itself.
    """
    try:
        members: Any = msgspec.json.decode(document)
    except msgspec.MsgspecError as error:
        raise ValueError(f"discovery document: {error}") from None
    issuer, uri = (members.get(name) if isinstance(members, dict) else None for name in ("issuer", "jwks_uri"))
    if issuer != item.key:
        raise ValueError(f"the discovery document is of {issuer!r}"[:300])
    try:
        parts = check_url(str(uri), "jwks_uri")
    except ConfigError as error:
        raise ValueError(str(error)[:300]) from None
    if parts.scheme != "https" and parts.hostname != urlsplit(item.key).hostname:
        raise ValueError("jwks_uri is not https")
    return str(uri)

"""Quotes of a real TPM 2.0 through the tpm2-tools programs: ``/dev/tpmrm0`` in production, swtpm in development.

The AK is made for cube-mesh alone: a restricted signing key under the owner hierarchy, so that nobody else's quotes
speak for it. It lives in the TPM; with ``ak_file`` its wrapped blob survives restarts and reboots (only this TPM can
load it), so that a policy can pin its name. Where a cloud fixes the AK, it is a persistent handle (Azure), or derived
from a template in NV (Google). Owner and endorsement authorization other than the empty one are not supported.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from attest.codec import cbor_decode, cbor_encode
from attest.errors import AttestError, CollectionFailed
from attest.evidence import ENDORSEMENTS, TPM2_QUOTE_TYPE, TPM_QUOTE, Part, encode_certificates
from attest.schemes.vtpm.abi import (
    BANK_NAMES,
    DIGEST_BYTES,
    Alg,
    QuotePart,
    encode_quote_part,
    parse_public,
    parse_quote,
)
from attest.schemes.vtpm.tools import TpmTools
from attest.schemes.vtpm.verify import ak_name, verify_quote

__all__ = ["TpmCollector"]

_KEY_ALGORITHMS = {"ecc": "ecc256:ecdsa-sha256:null", "rsa": "rsa2048:rsassa-sha256:null"}
_AK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
_SIGNATURES = {Alg.RSASSA: "rsassa", Alg.RSAPSS: "rsapss", Alg.ECDSA: "ecdsa"}
_CURVES = {3: "ecc256", 4: "ecc384"}
_ECC_BUFFER_BYTES = 128


class TpmCollector:
    """Collector of scheme "vtpm". Use as a context manager, or call :meth:`close`.

    ``tcti``: how to reach the TPM (``device:/dev/tpmrm0``, ``swtpm:path=...``, ``swtpm:host=...,port=...``).
    ``pcrs``: indexes to quote, of ``bank``. ``ak_file``: where the wrapped AK is kept (made when absent, mode 0600).
    ``ak_handle``: a persistent AK, such as ``0x81010002``, instead of an own one. ``ak_template``: NV index of the
    template of a cloud's AK under the endorsement hierarchy. ``ak_certificate``: NV index of the AK's certificate, sent
    before ``ak_certificates`` (DER). ``timeout_s``: for each program. Nothing is touched before the first use. Raises
    CollectionFailed.
    """

    scheme = "vtpm"

    def __init__(
        self,
        tcti: str,
        pcrs: Sequence[int],
        *,
        bank: str = "sha256",
        ak_file: str = "",
        ak_handle: str = "",
        ak_template: int = 0,
        algorithm: str = "ecc",
        ak_certificate: int = 0,
        ak_certificates: Sequence[bytes] = (),
        timeout_s: float = 10.0,
    ) -> None:
        if not pcrs or not all(0 <= index <= 23 for index in pcrs):
            raise ValueError("a quote needs PCR indexes from 0 to 23")
        if bank not in ("sha256", "sha384", "sha512") or algorithm not in _KEY_ALGORITHMS:
            raise ValueError(f"PCR bank {bank} or key algorithm {algorithm} is not supported")
        self.tools = TpmTools(tcti, timeout_s)
        self._selection = f"{bank}:{','.join(str(index) for index in sorted(set(pcrs)))}"
        self._ak_file = Path(ak_file) if ak_file else None
        self._ak_handle, self._ak_template, self._algorithm = ak_handle, ak_template, _KEY_ALGORITHMS[algorithm]
        self._ak_certificate, self._certificates = ak_certificate, tuple(ak_certificates)
        self._lock = threading.Lock()
        self._directory: Path | None = None
        self._blob: tuple[bytes, bytes] | None = None  # public and private part of the own AK, wrapped
        self._ak: str = ak_handle  # what `tpm2_quote -c` gets: a handle or a saved context
        self._ak_public = b""

    def __enter__(self) -> TpmCollector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the saved contexts. The AK's wrapped blob, if it has a file, stays."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def ak_name(self) -> str:
        """The AK's TPM name, hex, as a policy pins it. Loads the AK when that has not happened yet."""
        with self._lock:
            self._ready()
            return ak_name(self._ak_public)

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """What is sent as the AK's certificates, DER; the one of NV is read with the first quote."""
        return self._certificates

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        """A quote over ``data_hash`` (32 bytes), checked against itself before it is handed out."""
        with self._lock:
            self._ready()
            body = self._quote_again_if_needed(data_hash)
            self._add_certificate()
        parts = {TPM_QUOTE: Part(TPM2_QUOTE_TYPE, body)}
        if self._certificates:
            parts[ENDORSEMENTS] = encode_certificates(self._certificates)
        return parts

    def _quote_again_if_needed(self, data_hash: bytes) -> bytes:
        """A saved context dies with a TPM reset (suspend), and PCRs may change between quote and read: try twice."""
        try:
            return self._quote(data_hash)
        except AttestError:
            if not self._ak_handle:
                self._load()
        try:
            return self._quote(data_hash)
        except CollectionFailed:
            raise
        except AttestError as error:
            raise CollectionFailed(f"the TPM's own quote does not verify: {error}", code="tpm_failed") from error

    def _quote(self, data_hash: bytes) -> bytes:
        message, signature, values = (self._path(name) for name in ("quote.msg", "quote.sig", "quote.pcrs"))
        self.tools.run(
            "tpm2_quote", "-c", self._ak, "-l", self._selection, "-q", data_hash.hex(), "-g", "sha256",
            "-m", message, "-s", signature, "-o", values, "-F", "values",
        )  # fmt: skip
        attest = Path(message).read_bytes()
        pcrs = _split_pcrs(attest, Path(values).read_bytes())
        body = encode_quote_part(QuotePart(attest, Path(signature).read_bytes(), self._ak_public, pcrs))
        verify_quote(body, data_hash)
        return body

    def _add_certificate(self) -> None:
        """Once: what is in NV does not change while the AK stays."""
        if self._ak_certificate:
            self._certificates = (self.tools.read_certificate(self._ak_certificate), *self._certificates)
            self._ak_certificate = 0

    def _ready(self) -> None:
        if self._ak_public:
            return
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="cube-mesh-tpm-"))
        if self._ak_handle:
            self._ak_public = self._read_public(self._ak_handle)
            return
        if not self._ak_template:
            self._blob = self._read_ak_file()
        self._load()

    def _read_public(self, key: str) -> bytes:
        public = self._path("ak.tpmt")
        self.tools.run("tpm2_readpublic", "-Q", "-c", key, "-f", "tpmt", "-o", public)
        return Path(public).read_bytes()

    def _load(self) -> None:
        if self._ak_template:
            self._derive()
        else:
            self._load_own()

    def _load_own(self) -> None:
        """Load the own AK (make it when there is none) under a primary key that the TPM derives anew each time."""
        parent, public, private, context = (self._path(n) for n in ("parent.ctx", "ak.pub", "ak.priv", "ak.ctx"))
        self.tools.run("tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-c", parent)
        if self._blob is None:
            self.tools.run(
                "tpm2_create", "-Q", "-C", parent, "-G", self._algorithm, "-a", _AK_ATTRIBUTES,
                "-u", public, "-r", private,
            )  # fmt: skip
            self._blob = Path(public).read_bytes(), Path(private).read_bytes()
            self._write_ak_file(self._blob)
        Path(public).write_bytes(self._blob[0])
        Path(private).write_bytes(self._blob[1])
        self.tools.run("tpm2_load", "-Q", "-C", parent, "-u", public, "-r", private, "-c", context)
        self._ak, self._ak_public = context, self._blob[0][2:]  # TPM2B_PUBLIC is a size and the TPMT_PUBLIC

    def _derive(self) -> None:
        """The cloud's AK: the TPM derives it from its endorsement seed and the template, the same each time."""
        context, unique = self._path("ak.ctx"), self._path("ak.unique")
        template = self.tools.read_nv(self._ak_template)
        algorithm, hash_name, attributes, seed = template_arguments(template)
        Path(unique).write_bytes(seed)
        self.tools.run(
            "tpm2_createprimary", "-Q", "-C", "e", "-G", algorithm, "-g", hash_name, "-a", attributes, "-u", unique,
            "-c", context,
        )  # fmt: skip
        public = self._read_public(context)
        if _without_unique(public) != _without_unique(template):
            raise CollectionFailed("the TPM made another key than the template is of", code="tpm_failed")
        self._ak, self._ak_public = context, public

    def _read_ak_file(self) -> tuple[bytes, bytes] | None:
        if self._ak_file is None or not self._ak_file.exists():
            return None
        try:
            items = cbor_decode(self._ak_file.read_bytes())
        except (AttestError, OSError) as error:
            raise CollectionFailed(f"{self._ak_file}: {error}") from None
        if isinstance(items, list) and len(items) == 2:
            public, private = items
            if isinstance(public, bytes) and isinstance(private, bytes):
                return public, private
        raise CollectionFailed(f"{self._ak_file}: not an AK kept by cube-mesh")

    def _write_ak_file(self, blob: tuple[bytes, bytes]) -> None:
        if self._ak_file is None:
            return
        temporary = self._ak_file.with_name(f"{self._ak_file.name}.{os.getpid()}")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(cbor_encode(list(blob)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._ak_file)
        except OSError as error:
            raise CollectionFailed(f"cannot keep the AK: {error}") from None

    def _path(self, name: str) -> str:
        assert self._directory is not None
        return str(self._directory / name)


def _split_pcrs(attest: bytes, values: bytes) -> dict[int, dict[int, bytes]]:
    """The concatenated values that ``tpm2_quote -F values`` writes, by the selection that was quoted."""
    pcrs: dict[int, dict[int, bytes]] = {}
    at = 0
    for selection in parse_quote(attest).selections:
        if not selection.indexes:
            continue
        size = DIGEST_BYTES[selection.bank]
        bank = pcrs.setdefault(selection.bank, {})
        for index in selection.indexes:
            bank[index] = values[at : at + size]
            at += size
    if at != len(values):
        wanted = ", ".join(BANK_NAMES[bank] for bank in pcrs)
        raise CollectionFailed(f"tpm2_quote wrote {len(values)} bytes of PCR values, expected {at} ({wanted})")
    return pcrs


def template_arguments(raw: bytes) -> tuple[str, str, str, bytes]:
    """A template (TPMT_PUBLIC) as tpm2_createprimary takes it: algorithm, name hash, attributes, and TPMU_PUBLIC_ID in
    the layout of the TSS. Raises CollectionFailed for one that is no signing key's.
    """
    try:
        template = parse_public(raw)
        signature = f"{_SIGNATURES[Alg(template.scheme)]}-{BANK_NAMES[template.scheme_hash]}"
        kind = f"rsa{template.key_bits}" if template.type == Alg.RSA else _CURVES[template.curve]
        # A number is its length, in this machine's byte order, and a buffer of the size of MAX_ECC_KEY_BYTES; what is
        # behind the last one may be left out.
        numbers = [len(n).to_bytes(2, sys.byteorder) + n for n in template.unique]
        seed = b"".join(number.ljust(2 + _ECC_BUFFER_BYTES, b"\x00") for number in numbers[:-1]) + numbers[-1]
        return f"{kind}:{signature}:null", BANK_NAMES[template.name_alg], f"{template.attributes:#x}", seed
    except (AttestError, KeyError, ValueError) as error:
        raise CollectionFailed(f"the template of the AK: {error}", code="tpm_failed") from None


def _without_unique(public: bytes) -> bytes:
    return public[: len(public) - sum(2 + len(number) for number in parse_public(public).unique)]

"""The vendor roots are those whose hashes are written down, twice: in PROVENANCE.toml and in the verifier."""

from __future__ import annotations

import hashlib
import tomllib
from importlib.resources import files

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attest.anchors import amd_certificates
from attest.schemes.sev_snp.verify import ARK_SHA256, PRODUCTS, amd_roots
from attest.testkit.pki import ORGANIZATION, simulated_roots


def test_every_anchor_has_its_provenance() -> None:
    provenance = tomllib.loads(files("attest.anchors").joinpath("PROVENANCE.toml").read_text())["anchor"]
    written = [(entry["file"], entry["sha256"], entry["not_after"]) for entry in provenance]
    found = []
    for file in sorted(f.name for f in files("attest.anchors").iterdir() if f.name.endswith(".pem")):
        for block in files("attest.anchors").joinpath(file).read_bytes().split(b"-----END CERTIFICATE-----\n")[:-1]:
            certificate = x509.load_pem_x509_certificate(block + b"-----END CERTIFICATE-----\n")
            digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
            found.append((file, digest, certificate.not_valid_after_utc))
    assert sorted(found) == sorted(written) and len(set(written)) == len(written)


def test_roots_are_pinned_self_signed_and_vouch_for_their_intermediates() -> None:
    for product in PRODUCTS:
        (root,) = amd_roots()[product]
        assert hashlib.sha256(root.ark.public_bytes(Encoding.DER)).hexdigest() == ARK_SHA256[product]
        root.ark.verify_directly_issued_by(root.ark)
        mine = [c for c in root.intermediates if c.issuer == root.ark.subject and c != root.ark]
        assert len(mine) == 2 and not root.simulated
        for intermediate in mine:
            intermediate.verify_directly_issued_by(root.ark)


def test_simulated_roots_say_so_and_are_no_anchors() -> None:
    real = [c.public_key() for c in amd_certificates()]
    for (root,) in simulated_roots().values():
        assert root.simulated and ORGANIZATION in root.ark.subject.rfc4514_string()
        assert not any(c.public_key() in real for c in (root.ark, *root.intermediates))

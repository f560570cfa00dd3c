"""Credential activation: against our own arithmetic, a file of keylime's, and a real TPM implementation (swtpm)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from attest.errors import AttestError, MalformedEvidence
from attest.schemes.vtpm import credential
from attest.schemes.vtpm.credential import (
    Challenge,
    activate_credential,
    make_credential,
    parse_challenge,
    tools_file,
)

RSA_EK = rsa.generate_private_key(65537, 2048)
EC_EK = ec.derive_private_key(7, ec.SECP256R1())
NAME = b"\x00\x0b" + bytes(range(32))
SECRET = b"thirty-two bytes of a secret....."[:32]
FRESH: dict[str, Any] = {"rsa": {"seed": bytes(32)}, "ec": {"ephemeral": ec.derive_private_key(9, ec.SECP256R1())}}
EKS: dict[str, Any] = {"rsa": RSA_EK, "ec": EC_EK}


@pytest.mark.parametrize("kind", EKS)
@pytest.mark.parametrize("size", [1, 14, 15, 16, 31, 32])
def test_the_secret_comes_back(kind: str, size: int) -> None:
    challenge = make_credential(EKS[kind].public_key(), NAME, SECRET[:size], **FRESH[kind])
    assert parse_challenge(tools_file(challenge)) == challenge
    assert activate_credential(EKS[kind], NAME, challenge) == SECRET[:size]


@pytest.mark.parametrize("kind", EKS)
def test_only_for_this_key_and_this_object(kind: str) -> None:
    challenge = make_credential(EKS[kind].public_key(), NAME, SECRET, **FRESH[kind])
    other = {"rsa": rsa.generate_private_key(65537, 2048), "ec": ec.derive_private_key(8, ec.SECP256R1())}[kind]
    flipped = [
        Challenge(
            challenge.id_object[:at] + bytes((challenge.id_object[at] ^ 1,)) + challenge.id_object[at + 1 :], seed
        )
        for at in range(len(challenge.id_object))
        for seed in (challenge.encrypted_seed,)
    ]
    broken_seed = Challenge(challenge.id_object, challenge.encrypted_seed[:-1])
    cases = [(other, NAME, challenge), (EKS[kind], NAME[:-1] + b"\x00", challenge), (EKS[kind], NAME, broken_seed)]
    cases += [(EKS[kind], NAME, one) for one in flipped]
    for ek, name, one in cases:
        with pytest.raises(AttestError):
            activate_credential(ek, name, one)


@pytest.mark.parametrize(
    ("ek", "arguments"),
    [
        (RSA_EK, {"secret": b""}),
        (RSA_EK, {"secret": bytes(33)}),
        (RSA_EK, {"ak_name": NAME[:-1]}),
        (RSA_EK, {"ak_name": b"\x00\x0c" + NAME[2:]}),
        (RSA_EK, {"seed": None}),
        (RSA_EK, {"seed": bytes(31)}),
        (EC_EK, {"ephemeral": None}),
    ],
)
def test_arguments_that_do_not_fit(ek: Any, arguments: dict[str, Any]) -> None:
    fresh = {"seed": bytes(32)} if ek is RSA_EK else {}
    with pytest.raises(ValueError):
        make_credential(ek.public_key(), **{"ak_name": NAME, "secret": SECRET, **fresh, **arguments})


@pytest.mark.parametrize("ek", [rsa.generate_private_key(65537, 1024), ec.derive_private_key(7, ec.SECP384R1())])
def test_other_endorsement_keys(ek: Any) -> None:
    with pytest.raises(AttestError) as caught:
        make_credential(ek.public_key(), NAME, SECRET, seed=bytes(32))
    assert caught.value.code == "ek_algorithm"


def test_a_secret_of_another_length_than_it_says() -> None:
    """Made by somebody who knows the seed, so that the integrity holds."""
    seed = bytes(32)
    identity = credential._cfb(credential._kdfa(seed, b"STORAGE", NAME, 128), b"\x00\x05abc")
    sealed = RSA_EK.public_key().encrypt(seed, credential._OAEP)
    challenge = Challenge(credential._integrity(seed, identity, NAME) + identity, sealed)
    with pytest.raises(MalformedEvidence):
        activate_credential(RSA_EK, NAME, challenge)


def test_files_that_are_none() -> None:
    good = tools_file(make_credential(RSA_EK.public_key(), NAME, SECRET, seed=bytes(32)))
    for raw in (b"", good[1:], good + b"\x00", *(good[:length] for length in range(8, len(good), 7))):
        with pytest.raises(MalformedEvidence):
            parse_challenge(raw)


def test_keylimes_file_parses(vectors: Path) -> None:
    challenge = parse_challenge((vectors / "vtpm" / "keylime" / "mkcred.out").read_bytes())
    assert len(challenge.encrypted_seed) == 256


@pytest.mark.parametrize(("kind", "algorithm"), [("rsa", "rsa"), ("ec", "ecc")])
def test_a_real_tpm_gives_the_secret_back(
    tcti: str, tmp_path: Path, require_tools: Callable[..., None], kind: str, algorithm: str
) -> None:
    require_tools("tpm2_createek", "tpm2_createak", "tpm2_activatecredential", "tpm2_startauthsession")

    def run(*command: str) -> None:
        subprocess.run([*command, "-T", tcti], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
        if command[0] not in ("tpm2_startauthsession", "tpm2_policysecret"):
            subprocess.run(["tpm2_flushcontext", "-t", "-T", tcti], check=True)

    run("tpm2_createek", "-c", "ek.ctx", "-G", algorithm, "-u", "ek.pem", "-f", "pem")
    run("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-n", "ak.name")
    ek: Any = load_pem_public_key((tmp_path / "ek.pem").read_bytes())
    name = (tmp_path / "ak.name").read_bytes()
    (tmp_path / "challenge").write_bytes(tools_file(make_credential(ek, name, SECRET, **FRESH[kind])))
    run("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
    run("tpm2_policysecret", "-S", "session.ctx", "-c", "e")
    run(
        "tpm2_activatecredential", "-c", "ak.ctx", "-C", "ek.ctx", "-i", "challenge", "-o", "secret",
        "-P", "session:session.ctx",
    )  # fmt: skip
    assert (tmp_path / "secret").read_bytes() == SECRET

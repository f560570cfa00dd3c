"""Which field is the credential: one Authorization, and nothing else that looks like one."""

from __future__ import annotations

from typing import Any

import pytest

from cube_mesh.errors import PolicyError
from cube_mesh.middleware.authn import Authn
from cube_mesh.ports import Principal
from tests.middleware.fakes import exchange


class Anyone:
    """Accepts every credential and keeps it."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def authenticate(self, authorization: bytes) -> Principal:
        self.seen.append(authorization)
        return Principal("s", "api_key", "k")


class Doubled:
    """A head with two Authorization lines, which a strict parser would not hand out."""

    def get(self, name: bytes) -> bytes:
        return b"Bearer a"

    def count(self, name: bytes) -> int:
        return 2


def test_the_value_as_it_came() -> None:
    anyone = Anyone()
    Authn(anyone).enter(passing := exchange("/x", "GET", ("aUTHORIZATION", " Bearer  k ")))
    assert anyone.seen == [b"Bearer  k"] and passing.principal == Principal("s", "api_key", "k")


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (("X-Api-Key", "k"),),
        (("Cookie", "Authorization=k"),),
        (("Proxy-Authorization", "Bearer k"),),
        (("Api-Key", "k"),),
    ],
)
def test_no_other_field_is_a_credential(fields: Any) -> None:
    anyone = Anyone()
    with pytest.raises(PolicyError) as caught:
        Authn(anyone).enter(exchange("/x", "GET", *fields, query="?api_key=k&access_token=k"))
    assert (caught.value.status, caught.value.code, anyone.seen) == (401, "missing_credentials", [])


def test_two_credentials_are_none() -> None:
    anyone = Anyone()
    passing = exchange("/x", "GET")
    passing.head = Doubled()  # type: ignore[assignment]
    with pytest.raises(PolicyError) as caught:
        Authn(anyone).enter(passing)
    assert (caught.value.status, caught.value.code, anyone.seen) == (401, "invalid_api_key", [])

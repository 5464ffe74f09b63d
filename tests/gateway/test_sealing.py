"""What is sealed opens for its owner under the same pepper, and never otherwise."""

import secrets

import pytest

from gateway.sealing import SealBroken, sealer
from providers.adapter import Secret

PEPPER = Secret("the pepper of the tests, which is no secret")


def test_a_secret_opens_for_its_owner() -> None:
    one = sealer(PEPPER, secrets.token_bytes)
    sealed = one.seal("hush", "person 1")
    assert sealer(PEPPER, secrets.token_bytes).open(sealed, "person 1") == "hush"
    assert b"hush" not in sealed
    assert one.seal("hush", "person 1") != sealed


def test_it_opens_for_nobody_else_and_not_once_it_was_changed() -> None:
    one = sealer(PEPPER, secrets.token_bytes)
    sealed = one.seal("hush", "person 1")
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    other = sealer(Secret("another pepper, which is no secret either"), secrets.token_bytes)
    for opener, text, owner in (
        (one, sealed, "person 2"),
        (one, flipped, "person 1"),
        (one, b"\2" + sealed[1:], "person 1"),
        (one, b"", "person 1"),
        (other, sealed, "person 1"),
    ):
        with pytest.raises(SealBroken):
            opener.open(text, owner)

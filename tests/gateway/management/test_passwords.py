"""Passwords are judged, hashed and compared."""

import asyncio

import pytest

from gateway.errors import BadRequest
from gateway.management.passwords import Passwords

GOOD = "quarry lantern mosaic 17"


async def test_a_password_matches_its_hash_and_no_other() -> None:
    passwords = Passwords()
    first, second = await asyncio.gather(*(passwords.hashed(GOOD, known=[]) for _ in range(2)))
    assert first != second, "each has a salt of its own"
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await passwords.matches(GOOD, first)
    assert not await passwords.matches(GOOD + "8", first)


async def test_where_there_is_none_nothing_matches() -> None:
    passwords = Passwords()
    assert not await passwords.matches(GOOD, None)
    assert not await passwords.matches(GOOD, "not a hash")


@pytest.mark.parametrize(
    "password",
    ["short", "x" * 201, "password123456", "qwertyuiop123", "aaaaaaaaaaaaaaaa", "ada@example.com1"],
)
async def test_what_is_easily_guessed_is_refused_with_advice(password: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await Passwords().hashed(password, known=["ada@example.com", "Ada"])
    assert caught.value.code == "weak_password"
    assert caught.value.param == "password"


async def test_a_long_password_is_judged_in_no_time_and_counts_whole() -> None:
    passwords = Passwords()
    long = "seven mossy gates " * 11
    stored = await passwords.hashed(long, known=[])
    assert not await passwords.matches(long[:-1], stored)

"""The text of API keys."""

import hmac
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.keys import is_key_in_query, is_well_formed, issue, key_digester
from providers.adapter import Secret

PEPPER = Secret("a pepper of sixteen bytes or more")
A_KEY = issue(bytes(range(32)))


@given(st.binary(min_size=32, max_size=32))
def test_every_issued_key_is_well_formed_and_told_by_its_last_four(random_bytes: bytes) -> None:
    key = issue(random_bytes)
    text = key.secret.reveal()
    assert is_well_formed(text)
    assert text.startswith("tg_live_")
    assert len(text) == 58
    assert text[:51].endswith(key.last4)


def test_different_random_bytes_make_different_keys() -> None:
    lowest, highest = issue(bytes(32)), issue(b"\xff" * 32)
    assert lowest.secret.reveal()[8:51] == "0" * 43
    assert len({lowest.secret.reveal(), highest.secret.reveal(), A_KEY.secret.reveal()}) == 3


def test_a_key_is_not_shown_by_accident() -> None:
    assert A_KEY.secret.reveal() not in f"{A_KEY} {A_KEY!r}"


@given(st.integers(0, 57), st.characters())
def test_one_wrong_character_anywhere_is_noticed(position: int, character: str) -> None:
    text = A_KEY.secret.reveal()
    changed = text[:position] + character + text[position + 1 :]
    assert is_well_formed(changed) == (changed == text)


def test_a_key_in_other_letter_case_cut_or_lengthened_is_no_key() -> None:
    text = A_KEY.secret.reveal()
    for changed in (text.upper(), text[:-1], text + "a", f" {text}", f"{text}\n", ""):
        assert not is_well_formed(changed)


@given(st.text(max_size=100))
def test_no_other_text_is_a_key(text: str) -> None:
    assert not is_well_formed(text)
    assert not is_well_formed("tg_live_" + text)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=16, max_size=200), st.text("aZ0_"))
def test_the_digest_is_hmac_sha_256_under_the_pepper(pepper: str, key: str) -> None:
    expected = hmac.digest(pepper.encode(), key.encode(), "sha256")
    assert key_digester(Secret(pepper))(key) == expected


def test_a_short_pepper_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 16 bytes"):
        key_digester(Secret("short"))


@pytest.mark.parametrize(
    "query",
    [
        f"model=x&q={A_KEY.secret.reveal()}",
        "a=tg%5Flive%5Fwhatever",
        "key=sk-of-somebody",
        "API_Key=x",
        "a=1&api%5Fkey=x",
        "access_token=",
    ],
)
def test_a_key_in_the_query_string_is_noticed(query: str) -> None:
    assert is_key_in_query(query)


@pytest.mark.parametrize("query", ["", "limit=20&after=x", "keyboard=qwerty", "%zz=%", "tg_live"])
def test_other_queries_carry_no_key(query: str) -> None:
    assert not is_key_in_query(query)


def test_issued_keys_of_the_system_generator_do_not_repeat() -> None:
    keys = {issue(secrets.token_bytes(32)).secret.reveal() for _ in range(1000)}
    assert len(keys) == 1000

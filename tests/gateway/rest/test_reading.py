"""Requests are read strictly, and what is wrong with one is said by name."""

import msgspec
import pytest

from gateway.errors import BadRequest
from gateway.rest.cursor import Paged
from gateway.rest.reading import body_in, key_in, query_in, version_in


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    size: int = 0


def test_a_body_is_decoded_into_its_type() -> None:
    assert body_in(b'{"name": "a", "size": 3}', Thing) == Thing("a", 3)


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b'{"size": 3}', "invalid_body", None),
        (b'{"name": 3}', "invalid_body", "name"),
        (b'{"name": "a", "colour": 1}', "invalid_body", None),
        (b'{"name": "a\\u0000"}', "invalid_body", None),
        (b"[]", "invalid_body", None),
        (b"{", "invalid_json", None),
        (b"", "invalid_json", None),
        (b'{"name": "\xff"}', "invalid_json", None),
        (b'{"name": "\\ud800"}', "invalid_json", None),
    ],
)
def test_a_body_that_cannot_be_used_says_why(data: bytes, code: str, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        body_in(data, Thing)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert body_in(b'{"name": "\\\\u0000"}', Thing).name == "\\u0000"


def test_a_query_string_is_decoded_into_its_type() -> None:
    assert query_in([("limit", "7")], Paged) == Paged(limit=7)
    assert query_in([], Paged) == Paged()


@pytest.mark.parametrize(
    "pairs",
    [
        [("limit", "0")],
        [("limit", "many")],
        [("limit", "1"), ("limit", "2")],
        [("colour", "red")],
        [("cursor", "a\0b")],
    ],
)
def test_a_query_string_that_cannot_be_used_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(BadRequest):
        query_in(pairs, Paged)


def test_if_match_takes_an_etag() -> None:
    assert version_in({"If-Match": '"12"'}) == 12
    assert version_in({"If-Match": "*"}) is None
    assert version_in({}) is None
    for said in ("abc", "12", 'W/"12"', '"', '"-1"', '"' + "9" * 30 + '"', '"٣"'):
        with pytest.raises(BadRequest):
            version_in({"If-Match": said})


def test_an_idempotency_key_is_short_and_printable() -> None:
    assert key_in({"Idempotency-Key": "k"}) == "k"
    assert key_in({}) is None
    for key in ("", "x" * 201, "a\tb", "a b", "ä"):
        with pytest.raises(BadRequest):
            key_in({"Idempotency-Key": key})

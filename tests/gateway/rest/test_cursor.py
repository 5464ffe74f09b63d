"""A cursor says where a list goes on, and nothing else can pass for one."""

import pytest

from gateway.errors import BadRequest
from gateway.rest.cursor import cursor_at, place_in


def test_a_cursor_leads_back_to_its_place() -> None:
    place = (7, "name")
    assert place_in(cursor_at(place), tuple[int, str]) == place
    assert place_in(None, tuple[int, str]) is None


@pytest.mark.parametrize("cursor", ["", "!", "AAAA", "ä", cursor_at(("x", 1))])
def test_a_cursor_of_somebody_elses_is_refused(cursor: str) -> None:
    with pytest.raises(BadRequest) as caught:
        place_in(cursor, tuple[int, str])
    assert caught.value.code == "invalid_cursor"

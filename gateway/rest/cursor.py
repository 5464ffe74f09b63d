"""Where a list goes on: an opaque text that holds the last row's place. Pure."""

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar
from uuid import UUID

import msgspec

from gateway.errors import BadRequest

Row = TypeVar("Row")

PAGE_MAX = 200
_CURSOR_CHARACTERS_MAX = 400
_YEARS = 2000, 9000  # what the moments of rows lie between
_BEGINNING = datetime(_YEARS[0], 1, 1, tzinfo=UTC), UUID(int=0)


_Cursor = Annotated[
    str,
    msgspec.Meta(
        max_length=_CURSOR_CHARACTERS_MAX,
        description="`next_cursor` of the answer before; left out: from the beginning.",
    ),
]


class Paged(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of a list is wanted."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX, description="Rows in one answer.")] = 50
    cursor: _Cursor | None = None


class Page(msgspec.Struct, Generic[Row], frozen=True):
    """One part of a list."""

    data: list[Row]
    next_cursor: str | None  # null: nothing follows


Place = TypeVar("Place")


def place_in(cursor: str | None, form: type[Place]) -> Place | None:
    """The place a cursor of ours names; None without one. `BadRequest` if it is none of ours."""
    if cursor is None:
        return None
    try:
        packed = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        return msgspec.msgpack.decode(packed, type=form)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise _none_of_ours() from error


def moment_in(cursor: str | None) -> tuple[datetime, UUID]:
    """The row's moment and id after which a list, the oldest first, goes on."""
    place = place_in(cursor, tuple[datetime, UUID])
    if place is None:
        return _BEGINNING
    if place[0].tzinfo is None or not _YEARS[0] <= place[0].year <= _YEARS[1]:
        raise _none_of_ours()
    return place


def cursor_at(place: object) -> str:
    """The cursor of this place."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).rstrip(b"=").decode()


def _none_of_ours() -> BadRequest:
    return BadRequest(
        "cursor is not one of an answer before. Leave it out to begin anew.",
        code="invalid_cursor",
        param="cursor",
    )

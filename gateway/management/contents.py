"""What was said in calls, where it is kept, over HTTP: listed, read and forgotten.

Reading is for sessions only, no token's, and leaves a line in the audit log.
"""

from datetime import UTC, datetime
from uuid import UUID

import msgspec

from gateway import content
from gateway.content import Lost, Vault
from gateway.errors import Conflict, NotFound
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.policy import Permission
from gateway.rest.caller import member
from gateway.rest.cursor import Page, Paged, cursor_at, place_in
from gateway.rest.route import Answer, Asked, Nothing, Route

# The newest first: ids of calls are made in the order of time.
_LISTED = """
    SELECT c.call_id, length(c.packed) AS bytes FROM call_content AS c
    JOIN content_key AS k ON k.id = c.key_id AND k.sealed IS NOT NULL
    WHERE c.organization_id = $1 AND ($2::uuid IS NULL OR c.call_id < $2)
    ORDER BY c.call_id DESC LIMIT $3
"""


class ContentRow(msgspec.Struct, frozen=True, kw_only=True):
    """A call of which is kept what was said."""

    call_id: UUID
    at: datetime  # when it was let in
    bytes: int  # as it is stored: compressed and sealed


class ContentView(msgspec.Struct, frozen=True, kw_only=True):
    """What was said in a call. Bytes that are no UTF-8 are shown as U+FFFD."""

    call_id: UUID
    at: datetime
    request: str  # the body that the client sent
    answer: str  # what it was sent: a body, or the events of a stream
    is_cut: bool  # one of the two was longer than is kept


async def listed(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """The calls of which something is kept, the newest first."""
    wanted, organization_id = asked.query, asked.caller.place.organization_id
    before = place_in(wanted.cursor, UUID)
    rows = await desk.pool.fetch(_LISTED, organization_id, before, wanted.limit + 1)
    found = [
        ContentRow(call_id=row["call_id"], at=_at(row["call_id"]), bytes=row["bytes"])
        for row in rows[: wanted.limit]
    ]
    more = len(rows) > wanted.limit
    return Answer(
        Page[ContentRow](data=found, next_cursor=cursor_at(found[-1].call_id) if more else None)
    )


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """What was said in one call."""
    organization_id, call_id = asked.caller.place.organization_id, asked.id("call_id")
    try:
        said = await Vault(desk.sealer, desk.random_bytes).read(desk.pool, organization_id, call_id)
    except Lost as error:
        raise Conflict(f"It cannot be read: {error}.", code="content_lost") from error
    if said is None:
        raise NotFound(
            f"Nothing is kept of what was said in call {call_id}.", code="content_not_found"
        )
    async with desk.pool.acquire() as connection, connection.transaction():
        await note(connection, asked, "content.read", target=str(call_id))
    return Answer(
        ContentView(
            call_id=call_id,
            at=_at(call_id),
            request=said.request.decode(errors="replace"),
            answer=said.answer.decode(errors="replace"),
            is_cut=said.is_cut,
        )
    )


async def forget(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Forget all that was said until now. Nobody can read it from here on."""
    async with desk.pool.acquire() as connection, connection.transaction():
        await content.destroy(connection, asked.caller.place.organization_id)
        await note(connection, asked, "content.forget")
    return Answer()


def _at(call_id: UUID) -> datetime:
    return datetime.fromtimestamp((call_id.int >> 80) / 1000, UTC)


ROUTES = (
    Route(
        method="GET",
        path="/contents",
        name="contents.list",
        says="The calls of which is kept what was said.",
        access=member(Permission.CONTENT_READ, None),
        handle=listed,
        query=Paged,
        answers=Page[ContentRow],
    ),
    Route(
        method="GET",
        path="/contents/{call_id}",
        name="contents.get",
        says="What was said in a call. It is audited who reads it.",
        access=member(Permission.CONTENT_READ, None),
        handle=get,
        answers=ContentView,
        raises=(404, 409),
    ),
    Route(
        method="DELETE",
        path="/contents",
        name="contents.forget",
        says="Forget what was said in all calls until now.",
        access=member(Permission.PRIVACY_UPDATE, None),
        handle=forget,
    ),
)

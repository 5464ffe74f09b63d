"""Identities: what somebody is known by at an issuer, linked to their account, listed and removed.

Linking takes a browser to the issuer and back, as signing in does; whoever is signed in here and
comes back from there is both.
"""

import hmac
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec

from gateway.errors import BadRequest, Conflict, NotFound
from gateway.management import challenges, notices, ways
from gateway.management.challenges import Challenge, Purpose
from gateway.management.desk import Desk
from gateway.management.issuers import Asking, Claims, Returned
from gateway.management.notices import Notice, What
from gateway.rest.caller import SESSION
from gateway.rest.cursor import Page
from gateway.rest.route import Answer, Asked, Nothing, Route
from gateway.sign_in_settings import ISSUER_NAME, Issuer
from ledger.postgres import Connection

LINKING = "link."  # how a state begins that links: the page that people come back to asks by it

IssuerName = Annotated[
    str, msgspec.Meta(max_length=40, pattern=ISSUER_NAME.pattern.replace(r"\Z", "$"))
]
Said = Annotated[str, msgspec.Meta(min_length=1, max_length=4_000)]

_COLUMNS = "id, issuer, email, created_at, used_at"
_LISTED = f"SELECT {_COLUMNS} FROM identity WHERE person_id = $1 ORDER BY created_at, id"  # noqa: S608 - columns
_ONE = f"SELECT {_COLUMNS} FROM identity WHERE person_id = $1 AND issuer = $2 AND subject = $3"  # noqa: S608 - columns
_INSERT = """
    INSERT INTO identity (id, person_id, issuer, subject, email, created_at)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (issuer, subject) DO NOTHING
    RETURNING id
"""
_REMOVE = "DELETE FROM identity WHERE person_id = $1 AND id = $2 RETURNING issuer"


class IssuerOnly(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where somebody wants to go."""

    issuer: IssuerName


class ComingBack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in the URL that an issuer sent somebody back to."""

    issuer: IssuerName
    code: Said
    state: Said
    iss: Said | None = None


class Directions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the browser is to go. It must be the one that comes back."""

    url: str


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody at an issuer."""

    id: UUID
    issuer: str  # its URL
    email: str  # as it was when it was linked; "" if the issuer did not say
    created_at: datetime
    used_at: datetime | None


async def start(desk: Desk, asked: Asked[Nothing, IssuerOnly]) -> Answer:
    """Where to go to link an identity."""
    await ways.check_fresh(desk, asked)
    issuer = desk.issuers.find(asked.body.issuer)
    return await sent_to(desk, issuer, Purpose.LINK, session_id=asked.caller.session_id)


async def link(desk: Desk, asked: Asked[Nothing, ComingBack]) -> Answer:
    """Link the identity of who came back; once linked, it signs in."""
    await ways.check_fresh(desk, asked)
    person_id, issuer = asked.caller.person, desk.issuers.find(asked.body.issuer)
    claims = await who_came_back(desk, asked, issuer, Purpose.LINK)
    async with desk.pool.acquire() as connection, connection.transaction():
        await ways.lock(connection, person_id)
        if await linked(desk, connection, person_id, issuer, claims):
            await tell(desk, connection, asked, person_id, issuer)
        row = await connection.fetchrow(_ONE, person_id, issuer.issuer, claims.subject)
    if row is None:
        raise Conflict(
            f"This account at {issuer.name} signs in somebody else here. Remove it there first.",
            code="identity_taken",
        )
    return Answer(Identity(**dict(row)), cookies={challenges.COOKIE: None})


async def listed(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One's own identities, the oldest first."""
    rows = await desk.pool.fetch(_LISTED, asked.caller.person)
    return Answer(Page[Identity](data=[Identity(**dict(row)) for row in rows], next_cursor=None))


async def remove(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Remove one; sessions elsewhere end, as it may have opened them."""
    await ways.check_fresh(desk, asked)
    person_id, identity_id = asked.caller.person, asked.id("identity_id")
    async with desk.pool.acquire() as connection, connection.transaction():
        await ways.lock(connection, person_id)
        issuer = await connection.fetchval(_REMOVE, person_id, identity_id)
        if issuer is None:
            raise NotFound(f"You have no identity {identity_id}.", code="identity_not_found")
        await ways.check_one_is_left(desk, connection, person_id)
        await ways.end_elsewhere(desk, connection, asked)
        told = Notice(What.IDENTITY_REMOVED, asked.caller.address, f"That at {issuer}.")
        await notices.post(desk, connection, person_id, told)
    return Answer()


async def sent_to(desk: Desk, issuer: Issuer, purpose: Purpose, **facts: Any) -> Answer:
    """The directions to an issuer, and the challenge that the browser keeps meanwhile."""
    challenge = challenges.new(
        desk,
        purpose,
        issuer=issuer.name,
        nonce=challenges.random_text(desk),
        verifier=challenges.random_text(desk),
        **facts,
    )
    url = await desk.issuers.url(issuer, _asking(desk, challenge))
    cookies = {challenges.COOKIE: challenges.sealed(desk, challenge)}
    return Answer(Directions(url=url), cookies=cookies)


async def who_came_back(
    desk: Desk, asked: Asked[Nothing, ComingBack], issuer: Issuer, purpose: Purpose
) -> Claims:
    """Who somebody is at this issuer, from where they just came back in the same browser."""
    wanted = asked.body
    challenge = await challenges.answered(desk, asked, purpose)
    asking = _asking(desk, challenge)
    # The state: nobody was sent here by somebody else with a code that is not theirs.
    is_same = hmac.compare_digest(asking.state.encode(), wanted.state.encode())
    if challenge.issuer != issuer.name or not is_same:
        raise BadRequest(
            "Start again: this is not where this browser was sent from.", code="invalid_challenge"
        )
    returned = Returned(wanted.code, wanted.iss)
    return await desk.issuers.claims(issuer, returned, asking, now_s=desk.now().timestamp())


async def linked(
    desk: Desk, connection: Connection, person_id: UUID, issuer: Issuer, claims: Claims
) -> bool:
    """Link it; False: it is linked already, to this person or another."""
    row = (uuid4(), person_id, issuer.issuer, claims.subject, claims.email.lower(), desk.now())
    return await connection.fetchval(_INSERT, *row) is not None


async def tell(
    desk: Desk, connection: Connection, asked: Asked[Any, Any], person_id: UUID, issuer: Issuer
) -> None:
    """Mail the person that they, or somebody, can sign in there."""
    detail = f"{issuer.name} ({issuer.issuer}) signs you in from now on."
    told = Notice(What.IDENTITY_LINKED, asked.caller.address, detail)
    await notices.post(desk, connection, person_id, told)


def _asking(desk: Desk, challenge: Challenge) -> Asking:
    prefix = LINKING if challenge.purpose is Purpose.LINK else ""
    redirect_uri = f"{desk.site}/signed-in/{challenge.issuer}"
    return Asking(redirect_uri, prefix + challenge.value, challenge.nonce, challenge.verifier)


_MINE = "/me/identities"
ROUTES = (
    Route(
        method="POST",
        path=_MINE + "/challenges",
        name="identities.start",
        says="Where a browser is to go to link an identity at an issuer.",
        access=SESSION,
        handle=start,
        body=IssuerOnly,
        answers=Directions,
        status=201,
        raises=(404,),
    ),
    Route(
        method="POST",
        path=_MINE,
        name="identities.link",
        says="Link the identity of who came back from an issuer.",
        access=SESSION,
        handle=link,
        body=ComingBack,
        answers=Identity,
        status=201,
        is_guessed=True,
        raises=(404, 409),
    ),
    Route(
        method="GET",
        path=_MINE,
        name="identities.list",
        says="One's own identities at issuers.",
        access=SESSION,
        handle=listed,
        answers=Page[Identity],
    ),
    Route(
        method="DELETE",
        path=_MINE + "/{identity_id}",
        name="identities.remove",
        says="Remove one; sessions elsewhere end.",
        access=SESSION,
        handle=remove,
        raises=(409,),
    ),
)

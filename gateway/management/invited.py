"""Invitations over HTTP, for who is invited: what they are to join, their yes, their no.

The secret of the mailed link shows the invitation to anybody who has it; to accept, one signs in
with the invited address besides, so that a forwarded mail lets nobody else in.
"""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import msgspec

from gateway.errors import BadRequest, Conflict, Forbidden, NotFound
from gateway.management import people
from gateway.management.bearers import BearerKind, kind_of
from gateway.management.desk import Desk
from gateway.management.guard import switches_in
from gateway.management.invitations import END, check_room
from gateway.management.members import cut, lock
from gateway.management.people import Person, Secret
from gateway.policy import Preset, Role, policy_of
from gateway.rest.caller import ANYBODY, SESSION, Scope, person
from gateway.rest.cursor import Page, Paged, moment_in
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.postgres import Connection
from ledger.trail import Change, append_change

_VIEW = """
    SELECT i.id, i.organization_id, o.name, o.preset, o.switches, i.email, i.role, i.invited_by,
           i.created_at, i.expires_at, i.ended_at, i.outcome
    FROM invitation AS i JOIN organization AS o ON o.id = i.organization_id
"""
_BY_DIGEST = _VIEW + "WHERE i.digest = $1"
_BY_ID = _VIEW + "WHERE i.id = $1"
_MINE = (
    _VIEW
    + """WHERE lower(i.email) = lower($1) AND i.ended_at IS NULL AND i.expires_at > $2
      AND (i.created_at, i.id) > ($3, $4)
    ORDER BY i.created_at, i.id LIMIT $5
"""
)
# The row of who was here before, or of the address nobody signs in with, so that what was used
# under it stays theirs.
_BEFORE = """
    SELECT m.id, m.removed_at, s.person_id
    FROM member AS m LEFT JOIN seat AS s ON s.member_id = m.id
    WHERE m.organization_id = $1
      AND (s.person_id = $2 OR (s.person_id IS NULL AND lower(m.email) = lower($3)))
    ORDER BY s.person_id NULLS LAST LIMIT 1
"""
_INSERT = """
    INSERT INTO member (id, organization_id, email, name, role) VALUES ($1, $2, $3, $4, $5)
"""
_RETURN = """
    UPDATE member SET role = $2, name = $3, removed_at = NULL, version = version + 1 WHERE id = $1
"""
_SEAT = """
    INSERT INTO seat (person_id, organization_id, member_id) VALUES ($1, $2, $3)
    ON CONFLICT (person_id, organization_id) DO NOTHING
"""


class InvitationSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stood in the link, behind the #."""

    secret: Secret


class InvitationShown(msgspec.Struct, frozen=True, kw_only=True):
    """What the mail says, for who has its link."""

    organization: str
    role_label: str
    email: str  # whom it is for: sign in, or sign up, with this address
    expires_at: datetime


class MyInvitation(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation that one can accept."""

    id: UUID
    organization_id: UUID
    organization: str
    role: Role
    role_label: str
    invited_by: str
    created_at: datetime
    expires_at: datetime


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """What one is from now on."""

    organization_id: UUID
    organization: str
    member_id: UUID
    role: Role
    role_label: str


class _Sought(NamedTuple):
    """How an invitation is found, now and again under the lock."""

    sql: str
    by: object
    owner: str | None = None  # to anybody but this address it is unknown


async def mine(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """What one is invited to."""
    who, wanted = await people.one(desk, asked.caller.person), asked.query
    after = moment_in(wanted.cursor)
    rows: list[asyncpg.Record] = []
    if who.verified_at is not None:
        rows = await desk.pool.fetch(_MINE, who.email, desk.now(), *after, wanted.limit + 1)
    shown, following = cut(rows, wanted.limit)
    return Answer(Page[MyInvitation](data=[_view(row) for row in shown], next_cursor=following))


async def accept(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Join."""
    who = await people.one(desk, asked.caller.person)
    return await _accept(desk, asked, who, _my(asked, who))


async def accept_by_secret(desk: Desk, asked: Asked[Nothing, InvitationSecret]) -> Answer:
    """Join, by the link."""
    who = await people.one(desk, asked.caller.person)
    return await _accept(desk, asked, who, _linked(desk, asked.body.secret))


async def refuse(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Decline."""
    who = await people.one(desk, asked.caller.person)
    _check_verified(who)
    return await _refuse(desk, asked, _my(asked, who))


async def refuse_by_secret(desk: Desk, asked: Asked[Nothing, InvitationSecret]) -> Answer:
    """Decline, by the link; no account is needed."""
    return await _refuse(desk, asked, _linked(desk, asked.body.secret))


async def lookup(desk: Desk, asked: Asked[Nothing, InvitationSecret]) -> Answer:
    """What the link is for."""
    async with desk.pool.acquire() as connection:
        row = await _open_one(desk, connection, _linked(desk, asked.body.secret))
    found = _view(row)
    return Answer(
        InvitationShown(
            organization=found.organization,
            role_label=found.role_label,
            email=row["email"],
            expires_at=found.expires_at,
        )
    )


async def _accept(desk: Desk, asked: Asked[Any, Any], who: Person, sought: _Sought) -> Answer:
    _check_verified(who)
    async with desk.pool.acquire() as connection, connection.transaction():
        found = await _open_one(desk, connection, sought)
        organization_id = found["organization_id"]
        organization = await lock(connection, organization_id)
        row = await _open_one(desk, connection, sought)
        if row["email"].lower() != who.email.lower():
            raise Forbidden(
                f"This invitation is for {row['email']}, and you are signed in as {who.email}."
                f" Sign in with {row['email']}, or ask to be invited by your address.",
                code="wrong_address",
            )
        await check_room(desk, connection, organization_id, organization, is_coming=True)
        role = Role(row["role"])
        member_id = await _seated(connection, organization_id, who, role)
        await connection.execute(END, row["id"], desk.now(), "accepted")
        joined = {"member_id": str(member_id), "email": who.email, "role": role}
        await _note(connection, asked, row, "invitation.accept", joined)
    return Answer(
        Membership(
            organization_id=organization_id,
            organization=organization.name,
            member_id=member_id,
            role=role,
            role_label=organization.policy.labels[role],
        )
    )


async def _refuse(desk: Desk, asked: Asked[Any, Any], sought: _Sought) -> Answer:
    async with desk.pool.acquire() as connection, connection.transaction():
        await lock(connection, (await _open_one(desk, connection, sought))["organization_id"])
        row = await _open_one(desk, connection, sought)
        await connection.execute(END, row["id"], desk.now(), "declined")
        await _note(connection, asked, row, "invitation.decline", {"email": row["email"]})
    return Answer()


async def _seated(connection: Connection, organization_id: UUID, who: Person, role: Role) -> UUID:
    """The member that the person is from now on; the same one as before if they were here."""
    before = await connection.fetchrow(_BEFORE, organization_id, who.id, who.email)
    if before is not None and before["person_id"] is not None and before["removed_at"] is None:
        raise Conflict("You are a member already.", code="already_member")
    member_id: UUID = uuid4() if before is None else before["id"]
    if before is None:
        await connection.execute(_INSERT, member_id, organization_id, who.email, who.name, role)
    else:
        await connection.execute(_RETURN, member_id, role, who.name)
    await connection.execute(_SEAT, who.id, organization_id, member_id)
    return member_id


def _my(asked: Asked[Any, Any], who: Person) -> _Sought:
    return _Sought(_BY_ID, asked.id("invitation_id"), who.email.lower())


def _linked(desk: Desk, secret: str) -> _Sought:
    if kind_of(secret) is not BearerKind.INVITATION:
        raise _no_link()
    return _Sought(_BY_DIGEST, desk.digest(secret))


async def _open_one(desk: Desk, connection: Connection, sought: _Sought) -> asyncpg.Record:
    """The invitation, as long as it can be accepted."""
    row = await connection.fetchrow(sought.sql, sought.by)
    if sought.owner is not None and (row is None or row["email"].lower() != sought.owner):
        raise NotFound(
            f"You have no invitation {sought.by}; GET /api/v1/me/invitations lists them.",
            code="invitation_not_found",
        )
    if row is None:
        raise _no_link()
    if row["outcome"] == "accepted":
        text = "The invitation was accepted already. Sign in and choose the organization."
        raise Conflict(text, code="invitation_accepted")
    if row["outcome"] is not None:
        text = f"The invitation was {row['outcome']}. Ask {row['name']} to invite you again."
        raise Conflict(text, code="invitation_ended")
    if row["expires_at"] <= desk.now():
        text = f"The invitation has expired. Ask {row['name']} to send it again."
        raise Conflict(text, code="invitation_expired")
    return row


def _no_link() -> BadRequest:
    return BadRequest(
        "The link is not whole, or a newer one was mailed. Open the newest mail, or ask for the"
        " invitation to be sent again.",
        code="invalid_link",
        param="secret",
    )


def _check_verified(who: Person) -> None:
    if who.verified_at is None:
        raise Forbidden(
            "Verify your e-mail address first: POST /api/v1/verifications sends the link again.",
            code="email_not_verified",
        )


async def _note(
    connection: Connection,
    asked: Asked[Any, Any],
    row: asyncpg.Record,
    action: str,
    after: dict[str, Any],
) -> None:
    """A line of the audit log of the organization that they are not in yet."""
    actor = asked.caller.actor or f"link mailed to {row['email']}"
    change = Change(actor, action, str(row["id"]), after=after, address=asked.caller.address)
    await append_change(connection, str(row["organization_id"]), change)


def _view(row: asyncpg.Record) -> MyInvitation:
    role, policy = Role(row["role"]), policy_of(Preset(row["preset"]), switches_in(row["switches"]))
    return MyInvitation(
        id=row["id"],
        organization_id=row["organization_id"],
        organization=row["name"],
        role=role,
        role_label=policy.labels[role],
        invited_by=row["invited_by"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


ROUTES = (
    Route(
        method="GET",
        path="/me/invitations",
        name="invited.list",
        says="What one is invited to.",
        access=person(Scope.PROFILE_READ),
        handle=mine,
        query=Paged,
        answers=Page[MyInvitation],
    ),
    Route(
        method="POST",
        path="/me/invitations/{invitation_id}/acceptance",
        name="invited.accept",
        says="Join the organization one is invited to.",
        access=SESSION,
        handle=accept,
        answers=Membership,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/me/invitations/{invitation_id}/refusal",
        name="invited.refuse",
        says="Decline an invitation.",
        access=SESSION,
        handle=refuse,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/invitations/lookup",
        name="invited.lookup",
        says="What the link of an invitation is for; nobody need sign in.",
        access=ANYBODY,
        handle=lookup,
        body=InvitationSecret,
        answers=InvitationShown,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/invitations/acceptance",
        name="invited.accept_by_secret",
        says="Join by the link of an invitation, signed in with the address it was mailed to.",
        access=SESSION,
        handle=accept_by_secret,
        body=InvitationSecret,
        answers=Membership,
        raises=(404, 409),
    ),
    Route(
        method="POST",
        path="/invitations/refusal",
        name="invited.refuse_by_secret",
        says="Decline by the link of an invitation; nobody need sign in.",
        access=ANYBODY,
        handle=refuse_by_secret,
        body=InvitationSecret,
        raises=(404, 409),
    ),
)

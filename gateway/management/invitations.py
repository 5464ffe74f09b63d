"""Invitations over HTTP, for who invites: made, listed, sent again, revoked.

An invitation is for an address and works by the link mailed there. It lives for seven days; it can
then be sent again, with a new link. `invited.py` has what the invited person does.
"""

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import msgspec

from gateway.errors import Conflict, NotFound, TooMany
from gateway.management.audit import note
from gateway.management.bearers import BearerKind, NewBearer, issue
from gateway.management.desk import Desk
from gateway.management.limits import allowed_to
from gateway.management.mails import Mail, post
from gateway.management.members import Locked, check_may_give, cut, lock
from gateway.management.people import Email
from gateway.policy import Permission, Role
from gateway.rest.caller import Place, Scope, member
from gateway.rest.cursor import Page, Paged, moment_in
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.postgres import Connection

INVITATION_LIVES = timedelta(days=7)
_SENT_EVERY = timedelta(minutes=1)  # so that nobody's inbox is flooded

_COLUMNS = "id, email, role, invited_by, created_at, sent_at, expires_at, ended_at, outcome"
_LISTED = f"""
    SELECT {_COLUMNS} FROM invitation
    WHERE organization_id = $1 AND ended_at IS NULL
      AND (created_at, id) > ($2, $3)
    ORDER BY created_at, id LIMIT $4
"""  # noqa: S608 - names of columns
_ONE = f"SELECT {_COLUMNS} FROM invitation WHERE organization_id = $1 AND id = $2"  # noqa: S608 - names of columns
_OPEN = """
    SELECT id, expires_at FROM invitation
    WHERE organization_id = $1 AND lower(email) = $2 AND ended_at IS NULL
"""
# A member whom nobody can sign in as may be invited: the person then takes their place.
_IS_MEMBER = """
    SELECT EXISTS (
        SELECT FROM member AS m JOIN seat AS s ON s.member_id = m.id
        JOIN person AS p ON p.id = s.person_id
        WHERE m.organization_id = $1 AND m.removed_at IS NULL AND lower(p.email) = $2
    )
"""
_PLACES = """
    SELECT (SELECT count(*) FROM member
            WHERE organization_id = $1 AND removed_at IS NULL) AS members,
           (SELECT count(*) FROM invitation
            WHERE organization_id = $1 AND ended_at IS NULL AND expires_at > $2) AS invitations
"""
_INSERT = """
    INSERT INTO invitation (id, organization_id, email, role, digest, invited_by,
                            created_at, sent_at, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)
"""
_SEND_AGAIN = "UPDATE invitation SET digest = $2, sent_at = $3, expires_at = $4 WHERE id = $1"
END = "UPDATE invitation SET ended_at = $2, outcome = $3 WHERE id = $1"


class NewInvitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whom to invite, as what."""

    email: Email
    role: Role = Role.MEMBER


class InvitationView(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation that was neither accepted nor declined nor revoked."""

    id: UUID
    email: str
    role: Role
    role_label: str
    invited_by: str
    created_at: datetime
    sent_at: datetime
    expires_at: datetime
    is_expired: bool  # its link is dead; sent again, a new one lives


async def create(desk: Desk, asked: Asked[Nothing, NewInvitation]) -> Answer:
    """Invite somebody by mail."""
    place, now = asked.caller.place, desk.now()
    email, role, invitation_id = asked.body.email.lower(), asked.body.role, uuid4()
    check_may_give(place, before=None, after=role)
    async with desk.pool.acquire() as connection, connection.transaction():
        organization = await lock(connection, place.organization_id)
        if organization.is_personal:
            raise Conflict(
                "Your own account has no members but you. Make an organization with POST"
                " /api/v1/organizations and invite them there.",
                code="personal_account",
            )
        await _make_way(connection, place.organization_id, email, now)
        await check_room(desk, connection, place.organization_id, organization)
        bearer = _new_link(desk)
        await connection.execute(
            _INSERT,
            invitation_id,
            place.organization_id,
            email,
            role,
            bearer.digest,
            asked.caller.actor,
            now,
            now + INVITATION_LIVES,
        )
        made = await _one(connection, place, invitation_id, now)
        await _send(desk, connection, made, bearer, organization, asked.caller.actor)
        said = {"email": email, "role": role}
        await note(connection, asked, "invitation.create", target=str(made.id), after=said)
    return Answer(made)


async def listed(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """The open ones, the oldest first; expired ones too, until they are sent again or revoked."""
    place, wanted, now = asked.caller.place, asked.query, desk.now()
    after = moment_in(wanted.cursor)
    rows = await desk.pool.fetch(_LISTED, place.organization_id, *after, wanted.limit + 1)
    shown, following = cut(rows, wanted.limit)
    data = [_view(row, place, now) for row in shown]
    return Answer(Page[InvitationView](data=data, next_cursor=following))


async def resend(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Mail a new link, which lives for seven days from now; the one before is dead."""
    place, now = asked.caller.place, desk.now()
    async with desk.pool.acquire() as connection, connection.transaction():
        organization = await lock(connection, place.organization_id)
        found = await _one(connection, place, asked.id("invitation_id"), now)
        check_may_give(place, before=None, after=found.role)
        _check_pause(found, now)
        if found.is_expired:
            await check_room(desk, connection, place.organization_id, organization)
        bearer = _new_link(desk)
        await connection.execute(_SEND_AGAIN, found.id, bearer.digest, now, now + INVITATION_LIVES)
        sent = await _one(connection, place, found.id, now)
        await _send(desk, connection, sent, bearer, organization, asked.caller.actor)
        said = {"email": found.email}
        await note(connection, asked, "invitation.resend", target=str(found.id), after=said)
    return Answer(sent)


async def revoke(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Take it back: its link is dead."""
    place, now = asked.caller.place, desk.now()
    async with desk.pool.acquire() as connection, connection.transaction():
        await lock(connection, place.organization_id)
        found = await _one(connection, place, asked.id("invitation_id"), now)
        check_may_give(place, before=None, after=found.role)
        await connection.execute(END, found.id, now, "revoked")
        said = {"email": found.email, "role": found.role}
        await note(connection, asked, "invitation.revoke", target=str(found.id), before=said)
    return Answer()


async def check_room(
    desk: Desk,
    connection: Connection,
    organization_id: UUID,
    organization: Locked,
    *,
    is_coming: bool = False,
) -> None:
    """`Conflict` if there is no place for one more. The caller has the organization's lock.

    Open invitations have their places kept; `is_coming`: it is one of them that is accepted.
    """
    most = (await allowed_to(connection, desk.config.plans, organization_id)).members_max
    row = await connection.fetchrow(_PLACES, organization_id, desk.now())
    assert row is not None, "counts are one row"
    taken = row["members"] + (0 if is_coming else row["invitations"])
    if taken >= most:
        advice = (
            "Ask an owner or admin to make room, then open the link again."
            if is_coming
            else "Remove a member, revoke an invitation, or choose a larger plan."
        )
        raise Conflict(
            f"{organization.name} has {most} members at most, open invitations counted. {advice}",
            code="members_max",
            extra={"members_max": most},
        )


async def _make_way(
    connection: Connection, organization_id: UUID, email: str, now: datetime
) -> None:
    """`Conflict` if the address is a member's or was invited; an expired invitation is ended."""
    if await connection.fetchval(_IS_MEMBER, organization_id, email):
        raise Conflict(
            f"{email} is a member already. Change the role with PATCH /api/v1/members/{{id}}.",
            code="already_member",
            param="email",
        )
    row = await connection.fetchrow(_OPEN, organization_id, email)
    if row is None:
        return
    if row["expires_at"] > now:
        raise Conflict(
            f"{email} has an open invitation. Send it again with POST"
            f" /api/v1/invitations/{row['id']}/resend, or revoke it first.",
            code="already_invited",
            param="email",
            extra={"invitation_id": str(row["id"])},
        )
    await connection.execute(END, row["id"], now, "revoked")


def _check_pause(found: InvitationView, now: datetime) -> None:
    wait = found.sent_at + _SENT_EVERY - now
    if wait > timedelta():
        wait_ms = int(wait.total_seconds() * 1000) + 1
        raise TooMany(
            f"It was sent a moment ago. Send it again in {-(-wait_ms // 1000)} s.",
            code="rate_limit_exceeded",
            retry_after_ms=wait_ms,
            scope="invitation",
        )


def _new_link(desk: Desk) -> NewBearer:
    return issue(BearerKind.INVITATION, desk.random_bytes, desk.digest)


async def _send(
    desk: Desk,
    connection: Connection,
    to: InvitationView,
    bearer: NewBearer,
    organization: Locked,
    inviter: str,
) -> None:
    facts = {
        "site": desk.site,
        "inviter": inviter,
        "organization": organization.name,
        "role": to.role_label,
        "days": INVITATION_LIVES.days,
        # Behind the #: browsers send it to nobody, so no log of a proxy has it.
        "link": f"{desk.site}/invitation#{bearer.secret.reveal()}",
    }
    await post(connection, Mail(to.email, "invitation", facts), to.sent_at)


async def _one(
    connection: Connection, place: Place, invitation_id: UUID, now: datetime
) -> InvitationView:
    """An open invitation of the organization; `NotFound` if it has none, `Conflict` if it ended."""
    row = await connection.fetchrow(_ONE, place.organization_id, invitation_id)
    if row is None:
        raise NotFound(f"There is no invitation {invitation_id} here.", code="invitation_not_found")
    if row["ended_at"] is not None:
        raise Conflict(
            f"This invitation was {row['outcome']}. Invite the address again if you want to.",
            code="invitation_ended",
        )
    return _view(row, place, now)


def _view(row: asyncpg.Record, place: Place, now: datetime) -> InvitationView:
    role = Role(row["role"])
    return InvitationView(
        id=row["id"],
        email=row["email"],
        role=role,
        role_label=place.policy.labels[role],
        invited_by=row["invited_by"],
        created_at=row["created_at"],
        sent_at=row["sent_at"],
        expires_at=row["expires_at"],
        is_expired=row["expires_at"] <= now,
    )


ROUTES = (
    Route(
        method="POST",
        path="/invitations",
        name="invitations.create",
        says="Invite somebody by mail; only owners invite owners. The link lives for seven days.",
        access=member(Permission.MEMBER_INVITE, Scope.MEMBERS_WRITE),
        handle=create,
        body=NewInvitation,
        answers=InvitationView,
        status=201,
        is_once=True,
    ),
    Route(
        method="GET",
        path="/invitations",
        name="invitations.list",
        says="The open invitations; expired ones too, until they are sent again or revoked.",
        access=member(Permission.MEMBER_INVITE, Scope.MEMBERS_READ),
        handle=listed,
        query=Paged,
        answers=Page[InvitationView],
    ),
    Route(
        method="POST",
        path="/invitations/{invitation_id}/resend",
        name="invitations.resend",
        says="Mail a new link, which lives for seven days; the one before is dead.",
        access=member(Permission.MEMBER_INVITE, Scope.MEMBERS_WRITE),
        handle=resend,
        answers=InvitationView,
        is_once=True,
    ),
    Route(
        method="DELETE",
        path="/invitations/{invitation_id}",
        name="invitations.revoke",
        says="Take an invitation back: its link is dead.",
        access=member(Permission.MEMBER_INVITE, Scope.MEMBERS_WRITE),
        handle=revoke,
        raises=(409,),
    ),
)

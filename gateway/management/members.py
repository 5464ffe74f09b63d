"""Members over HTTP: who is in an organization, as what, and how they go.

An organization has an owner at all times. Whoever changes who is in it holds the lock of its row
while looking and writing, so of two that would leave it without one, the second is refused.
"""

from datetime import datetime
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from gateway.errors import Conflict, Forbidden, NotFound
from gateway.management import api_keys, key_secrets
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.guard import switches_in
from gateway.policy import (
    Grant,
    KeysOfLeavers,
    Permission,
    Policy,
    Preset,
    Role,
    may_give,
    policy_of,
)
from gateway.rest.caller import Place, Scope, member
from gateway.rest.cursor import Page, Paged, cursor_at, moment_in
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.postgres import Connection

_LOCK = """
    SELECT name, kind, preset, switches FROM organization
    WHERE id = $1 AND deleted_at IS NULL
    FOR NO KEY UPDATE
"""
# A member who can sign in is named as they name themselves now.
_PRESENT = """
    SELECT m.id, s.person_id, coalesce(p.email, m.email) AS email,
           coalesce(nullif(p.name, ''), m.name) AS name, m.role, m.grants, m.created_at,
           m.version
    FROM member AS m LEFT JOIN seat AS s ON s.member_id = m.id
    LEFT JOIN person AS p ON p.id = s.person_id
    WHERE m.organization_id = $1 AND m.removed_at IS NULL
"""
_ONE = _PRESENT + "AND m.id = $2"
_LISTED = (
    _PRESENT
    + """AND (m.created_at, m.id) > ($2, $3)
    ORDER BY m.created_at, m.id LIMIT $4
"""
)
_SET = "UPDATE member SET role = $2, grants = $3, version = version + 1 WHERE id = $1"
_REMOVE = """
    UPDATE member SET removed_at = $2, grants = '{}', version = version + 1 WHERE id = $1
"""
_OTHER_OWNER = """
    SELECT EXISTS (
        SELECT FROM member AS m JOIN seat AS s ON s.member_id = m.id
        JOIN person AS p ON p.id = s.person_id
        WHERE m.organization_id = $1 AND m.id <> $2 AND m.role = 'owner'
          AND m.removed_at IS NULL AND p.disabled_at IS NULL
    )
"""
# Who ends a key has its lock first and the organization's after, so a removal does the same.
_LOCK_KEYS = """
    SELECT id FROM api_key
    WHERE organization_id = $1 AND member_id = $2 AND revoked_at IS NULL
    ORDER BY id FOR NO KEY UPDATE
"""
_END_KEYS = """
    UPDATE api_key SET revoked_at = $3, version = version + 1
    WHERE organization_id = $1 AND member_id = $2 AND revoked_at IS NULL
    RETURNING id
"""
_HAND_OVER_KEYS = """
    UPDATE api_key SET member_id = $3, version = version + 1
    WHERE organization_id = $1 AND member_id = $2 AND revoked_at IS NULL
    RETURNING id
"""
# Who removed them, if still there; else the oldest owner.
_HEIR = """
    SELECT m.id FROM member AS m JOIN seat AS s ON s.member_id = m.id
    WHERE m.organization_id = $1 AND m.id <> $2 AND m.removed_at IS NULL
      AND (m.id = $3 OR m.role = 'owner')
    ORDER BY m.id IS NOT DISTINCT FROM $3 DESC, m.created_at, m.id LIMIT 1
"""
_END_TOKENS = """
    UPDATE token SET revoked_at = $3
    WHERE organization_id = $1 AND lower(created_by) = lower($2) AND revoked_at IS NULL
"""


class MemberChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a member is to be; what is left out stays. `grants` replaces all of them."""

    role: Role | UnsetType = UNSET
    grants: Annotated[list[Grant], msgspec.Meta(max_length=len(Grant))] | UnsetType = UNSET


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """A member."""

    id: UUID
    email: str
    name: str
    role: Role
    role_label: str  # what the organization calls the role
    grants: list[Grant]  # what they may beyond it
    is_me: bool
    joined_at: datetime  # for the first time, if they left and came back
    version: int


class Locked(NamedTuple):
    """An organization that nobody else changes until the transaction ends."""

    name: str
    is_personal: bool
    policy: Policy


async def listed(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """Who is in the organization, who came first at first."""
    place, wanted = asked.caller.place, asked.query
    after = moment_in(wanted.cursor)
    rows = await desk.pool.fetch(_LISTED, place.organization_id, *after, wanted.limit + 1)
    shown, following = cut(rows, wanted.limit)
    data = [_view(row, place) for row in shown]
    return Answer(Page[MemberView](data=data, next_cursor=following))


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One of them."""
    place = asked.caller.place
    async with desk.pool.acquire() as connection:
        found = await _one(connection, place, asked.id("member_id"))
    return Answer(found, found.version)


async def change(desk: Desk, asked: Asked[Nothing, MemberChange]) -> Answer:
    """Give a member another role, or rights beyond it."""
    place, wanted = asked.caller.place, asked.body
    async with desk.pool.acquire() as connection, connection.transaction():
        await lock(connection, place.organization_id)
        found = await _one(connection, place, asked.id("member_id"))
        _check_version(asked, found)
        role = found.role if wanted.role is UNSET else wanted.role
        grants = found.grants if wanted.grants is UNSET else _whole(wanted.grants)
        check_may_give(place, before=found.role, after=role)
        if role is found.role and grants == found.grants:
            return Answer(found, found.version)
        if found.role is Role.OWNER and role is not Role.OWNER:
            await _check_other_owner(connection, place.organization_id, found.id)
        await connection.execute(_SET, found.id, role, grants)
        before = {"email": found.email, "role": found.role, "grants": found.grants}
        after = {"role": role, "grants": grants}
        await note(
            connection, asked, "member.role", target=str(found.id), before=before, after=after
        )
        changed = await _one(connection, place, found.id)
    return Answer(changed, changed.version)


async def remove(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Put a member out: nothing of the organization is theirs from then on."""
    await _part(desk, asked, asked.id("member_id"))
    return Answer()


async def leave(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Go, of one's own accord."""
    member_id = asked.caller.place.member_id
    if member_id is None:
        raise Forbidden(
            "A token of the organization is no member who could leave. Revoke it instead.",
            code="not_a_member",
        )
    await _part(desk, asked, member_id)
    return Answer()


async def lock(connection: Connection, organization_id: UUID) -> Locked:
    """Have the organization for oneself until the transaction ends; `NotFound` if it was deleted.

    What is read before may be old; read after, it stays true.
    """
    row = await connection.fetchrow(_LOCK, organization_id)
    if row is None:
        raise NotFound(
            f"There is no organization {organization_id}.", code="organization_not_found"
        )
    return Locked(
        row["name"],
        row["kind"] == "personal",
        policy_of(Preset(row["preset"]), switches_in(row["switches"])),
    )


def cut(rows: list[asyncpg.Record], limit: int) -> tuple[list[asyncpg.Record], str | None]:
    """The rows of one page by age, and the cursor of the next; `rows` has one more if there is."""
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], cursor_at((last["created_at"], last["id"]))


def check_may_give(place: Place, *, before: Role | None, after: Role | None) -> None:
    """`Forbidden` unless the caller may make a `before` an `after`; None: no member."""
    if not may_give(place.role, before=before, after=after):
        raise Forbidden(
            "Only owners make somebody an owner, and only owners end it. Ask one of them.",
            code="owners_only",
        )


async def _part(desk: Desk, asked: Asked[Nothing, Nothing], member_id: UUID) -> None:
    """The end of a membership, and of what came with it."""
    place, now = asked.caller.place, desk.now()
    is_leaving = member_id == place.member_id
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(_LOCK_KEYS, place.organization_id, member_id)
        secrets_of = await key_secrets.end_members(connection, member_id)
        organization = await lock(connection, place.organization_id)
        found = await _one(connection, place, member_id)
        _check_version(asked, found)
        if organization.is_personal:
            raise Conflict(
                "This is somebody's own account. It is theirs for as long as they are here.",
                code="personal_account",
            )
        if not is_leaving:
            check_may_give(place, before=found.role, after=None)
        if found.role is Role.OWNER:
            await _check_other_owner(connection, place.organization_id, member_id)
        heir = None
        if organization.policy.keys_of_leavers is KeysOfLeavers.HAND_OVER:
            remover = None if is_leaving else place.member_id
            heir = await connection.fetchval(_HEIR, place.organization_id, member_id, remover)
        of_member = (place.organization_id, member_id)
        if heir is None:
            keys = await connection.fetch(_END_KEYS, *of_member, now)
        else:
            keys = await connection.fetch(_HAND_OVER_KEYS, *of_member, heir)
        await connection.execute(_REMOVE, member_id, now)
        # What they know by heart must not open the door again.
        await connection.execute(_END_TOKENS, place.organization_id, found.email, now)
        await note(
            connection,
            asked,
            "member.leave" if is_leaving else "member.remove",
            target=str(member_id),
            before={"email": found.email, "role": found.role},
            after={
                "keys": [str(key["id"]) for key in keys],
                "keys_handed_to": None if heir is None else str(heir),
            },
        )
    changed = [*(key["id"] for key in keys), *secrets_of]
    await api_keys.publish_keys(desk.pool, desk.cache, changed)


async def _check_other_owner(
    connection: Connection, organization_id: UUID, member_id: UUID
) -> None:
    """`Conflict` if nobody else owns it. The caller has the organization's lock."""
    if not await connection.fetchval(_OTHER_OWNER, organization_id, member_id):
        raise Conflict(
            "An organization has an owner at all times, and this is the last one. Make somebody"
            " else an owner first, or delete the organization.",
            code="last_owner",
        )


def _whole(grants: list[Grant]) -> list[Grant]:
    """Each once; who manages everybody's keys makes some, too."""
    implied = {Grant.KEY_CREATE} if Grant.KEY_MANAGE in grants else set()
    return sorted({*grants, *implied})


def _check_version(asked: Asked[Any, Any], found: MemberView) -> None:
    if asked.if_match not in {None, found.version}:
        raise ChangedMeanwhile


async def _one(connection: Connection, place: Place, member_id: UUID) -> MemberView:
    row = await connection.fetchrow(_ONE, place.organization_id, member_id)
    if row is None:
        raise NotFound(f"There is no member {member_id} here.", code="member_not_found")
    return _view(row, place)


def _view(row: asyncpg.Record, place: Place) -> MemberView:
    role = Role(row["role"])
    return MemberView(
        id=row["id"],
        email=row["email"],
        name=row["name"],
        role=role,
        role_label=place.policy.labels[role],
        grants=[Grant(one) for one in row["grants"]],
        is_me=row["id"] == place.member_id,
        joined_at=row["created_at"],
        version=row["version"],
    )


ROUTES = (
    Route(
        method="GET",
        path="/members",
        name="members.list",
        says="Who is in the organization; who came first is first.",
        access=member(Permission.MEMBER_READ, Scope.MEMBERS_READ),
        handle=listed,
        query=Paged,
        answers=Page[MemberView],
    ),
    Route(
        method="GET",
        path="/members/{member_id}",
        name="members.get",
        says="One member.",
        access=member(Permission.MEMBER_READ, Scope.MEMBERS_READ),
        handle=get,
        answers=MemberView,
    ),
    Route(
        method="PATCH",
        path="/members/{member_id}",
        name="members.change",
        says="Give a member another role, which only owners do with owners, or rights beyond it.",
        access=member(Permission.MEMBER_ROLE, Scope.MEMBERS_WRITE),
        handle=change,
        body=MemberChange,
        answers=MemberView,
        raises=(409,),
    ),
    Route(
        method="DELETE",
        path="/members/{member_id}",
        name="members.remove",
        says="Put a member out. Their keys here end or are handed over, as the policy says.",
        access=member(Permission.MEMBER_REMOVE, Scope.MEMBERS_WRITE),
        handle=remove,
        raises=(409, 412),
    ),
    Route(
        method="POST",
        path="/membership/departure",
        name="members.leave",
        says="Leave. The last owner cannot, and nobody can leave their own account.",
        access=member(None, Scope.MEMBERS_WRITE),
        handle=leave,
        raises=(409, 412),
    ),
)

"""Organizations over HTTP: one's own, a new one, the one at hand; its policy and its end."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import available_timezones

import msgspec
from msgspec import UNSET, UnsetType

from gateway import content
from gateway.errors import BadRequest, Conflict, Forbidden
from gateway.management import api_keys, people
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.guard import switches_in
from gateway.management.ip_ranges import IpRanges, ranges_in
from gateway.management.limits import allowed_to
from gateway.management.people import Email
from gateway.policy import Permission, Policy, Preset, Role, policy_of
from gateway.rest.caller import Scope, member, person
from gateway.rest.cursor import Page
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.bases import tell
from ledger.book import Book

OrganizationName = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f\s]([^\x00-\x1f\x7f]*[^\x00-\x1f\x7f\s])?$",
    ),
]
Description = Annotated[str, msgspec.Meta(max_length=1_000, pattern=r"^[^\x00]*$")]
TimeZone = Annotated[str, msgspec.Meta(max_length=64, examples=["Europe/Berlin"])]

_COLUMNS = """
    o.id, o.name, o.kind, o.description, o.billing_email, o.time_zone, o.preset, o.switches,
    o.limits, o.suspended_at, o.created_at, o.version, o.ip_ranges
"""
_ONE = "SELECT" + _COLUMNS + "FROM organization AS o WHERE o.id = $1"
_MINE = (
    "SELECT"
    + _COLUMNS
    + """, m.role, m.grants
    FROM seat AS s JOIN member AS m ON m.id = s.member_id
    JOIN organization AS o ON o.id = s.organization_id
    WHERE s.person_id = $1 AND m.removed_at IS NULL AND o.deleted_at IS NULL
    ORDER BY o.kind DESC, lower(o.name), o.id LIMIT 1000
"""
)
_OWNED = """
    SELECT count(*) FROM seat AS s JOIN member AS m ON m.id = s.member_id
    JOIN organization AS o ON o.id = s.organization_id
    WHERE s.person_id = $1 AND m.removed_at IS NULL AND m.role = 'owner'
      AND o.deleted_at IS NULL AND o.kind = 'organization'
"""
_LOCK_PERSON = "SELECT id FROM person WHERE id = $1 FOR UPDATE"
_SET = """
    UPDATE organization
    SET name = $2, description = $3, billing_email = $4, time_zone = $5, ip_ranges = $6,
        version = version + 1
    WHERE id = $1 AND deleted_at IS NULL AND ($7::bigint IS NULL OR version = $7)
    RETURNING id
"""
_SET_PRESET = "UPDATE organization SET preset = $2 WHERE id = $1"
_DELETE = """
    UPDATE organization SET deleted_at = $2, version = version + 1
    WHERE id = $1 AND deleted_at IS NULL
    RETURNING id
"""
_END_INVITATIONS = """
    UPDATE invitation SET ended_at = $2, outcome = 'revoked'
    WHERE organization_id = $1 AND ended_at IS NULL
"""
_END_TOKENS = """
    UPDATE token SET revoked_at = $2 WHERE organization_id = $1 AND revoked_at IS NULL
"""


class NewOrganization(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a new organization is to be."""

    name: OrganizationName
    description: Description = ""
    time_zone: TimeZone = "UTC"  # where its days, budgets and reports begin
    preset: Preset = Preset.PLATFORM


class OrganizationChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays."""

    name: OrganizationName | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    billing_email: Email | UnsetType | None = UNSET
    time_zone: TimeZone | UnsetType = UNSET
    ip_ranges: IpRanges | UnsetType | None = UNSET  # where its keys' calls may come from


class Ending(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The deletion of an organization, meant."""

    confirmation: Annotated[str, msgspec.Meta(max_length=200)]  # its name, typed
    forfeit_balance: bool = False  # what is left is given up


class OrganizationView(msgspec.Struct, frozen=True, kw_only=True):
    """An organization."""

    id: UUID
    name: str
    kind: str  # organization | personal
    description: str
    billing_email: str | None
    time_zone: str
    preset: Preset
    is_suspended: bool
    ip_ranges: list[str] | None  # of all its keys, beside each key's own; null: anywhere
    role: Role  # who asks
    role_label: str
    permissions: list[Permission]  # of who asks
    created_at: datetime
    version: int


async def mine(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """The organizations one is in, one's own account first."""
    rows = await desk.pool.fetch(_MINE, asked.caller.person)
    return Answer(
        Page[OrganizationView](
            data=[_view(row, Role(row["role"]), frozenset(row["grants"])) for row in rows],
            next_cursor=None,
        )
    )


async def create(desk: Desk, asked: Asked[Nothing, NewOrganization]) -> Answer:
    """Make an organization; who asks is its owner."""
    wanted, caller = asked.body, asked.caller
    _check_zone(wanted.time_zone)
    founder = await people.one(desk, caller.person)
    if founder.verified_at is None:
        raise Forbidden(
            "Verify your e-mail address first: POST /api/v1/verifications sends the link again.",
            code="email_not_verified",
        )
    account_id = await people.make_account(desk, founder.id, address=caller.address)
    most = (await allowed_to(desk.pool, desk.config.plans, account_id)).organizations_max
    if await desk.pool.fetchval(_OWNED, founder.id) >= most:
        raise _too_many(most)
    book = Book(desk.pool)
    made = await book.create_organization(
        wanted.name, actor=caller.actor, time_zone=wanted.time_zone, address=caller.address
    )
    organization_id = UUID(made.id)
    async with desk.pool.acquire() as connection, connection.transaction():
        # Of two at once the second counts the first.
        await connection.execute(_LOCK_PERSON, founder.id)
        is_too_many = await connection.fetchval(_OWNED, founder.id) >= most
        if is_too_many:
            await connection.execute(_DELETE, organization_id, desk.now())
        else:
            await people.join(connection, organization_id, founder)
            await connection.execute(_SET_PRESET, organization_id, wanted.preset)
            await connection.execute(
                _SET,
                organization_id,
                wanted.name,
                wanted.description,
                None,
                wanted.time_zone,
                None,
                None,
            )
    if is_too_many:
        raise _too_many(most)
    wallet = await book.wallet(made.id)
    assert wallet is not None, "an organization is made with its wallet"
    await tell(desk.pool, desk.redis, wallet)
    view = await _one(desk, organization_id, Role.OWNER)
    return Answer(view, view.version)


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """The organization at hand."""
    place = asked.caller.place
    view = await _one(desk, place.organization_id, place.role, place.grants)
    return Answer(view, view.version)


async def change(desk: Desk, asked: Asked[Nothing, OrganizationChange]) -> Answer:
    """Change its details."""
    place, wanted = asked.caller.place, msgspec.structs.asdict(asked.body)
    if asked.body.time_zone is not UNSET:
        _check_zone(asked.body.time_zone)
    before = await _one(desk, place.organization_id, place.role, place.grants)
    changes = {name: value for name, value in wanted.items() if value is not UNSET}
    if changes.get("ip_ranges") is not None:
        changes["ip_ranges"] = ranges_in(changes["ip_ranges"])
    after = msgspec.structs.replace(before, **changes)
    async with desk.pool.acquire() as connection, connection.transaction():
        done = await connection.fetchval(
            _SET,
            place.organization_id,
            after.name,
            after.description,
            after.billing_email,
            after.time_zone,
            after.ip_ranges,
            asked.if_match if asked.if_match is not None else before.version,
        )
        if done is None:
            raise ChangedMeanwhile
        said = {name: getattr(before, name) for name in changes}
        await note(connection, asked, "organization.update", before=said, after=changes)
    if not changes.keys().isdisjoint({"time_zone", "ip_ranges"}):
        await api_keys.publish_all(desk.pool, desk.cache, place.organization_id)
    view = await _one(desk, place.organization_id, place.role, place.grants)
    return Answer(view, view.version)


async def delete(desk: Desk, asked: Asked[Nothing, Ending]) -> Answer:
    """End it for ever: its keys are dead at once, its records stay."""
    place, wanted = asked.caller.place, asked.body
    found = await _one(desk, place.organization_id, place.role, place.grants)
    if found.kind == "personal":
        raise Conflict("Your own account cannot be deleted here.", code="personal_account")
    if wanted.confirmation != found.name:
        raise BadRequest(
            "confirmation must be the organization's name, exactly.",
            code="not_confirmed",
            param="confirmation",
        )
    wallet = await Book(desk.pool).wallet(str(place.organization_id))
    assert wallet is not None, "an organization has a wallet"
    if wallet.balance > 0 and not wanted.forfeit_balance:
        raise Conflict(
            "It has credits left. Ask the operator to refund or transfer them, or give them up with"
            " forfeit_balance.",
            code="balance_left",
            extra={"balance_nanos": wallet.balance},
        )
    now = desk.now()
    async with desk.pool.acquire() as connection, connection.transaction():
        await content.destroy(connection, place.organization_id)
        if await connection.fetchval(_DELETE, place.organization_id, now) is not None:
            await connection.execute(_END_INVITATIONS, place.organization_id, now)
            await connection.execute(_END_TOKENS, place.organization_id, now)
            left = {"name": found.name, "balance": str(wallet.balance)}
            await note(connection, asked, "organization.delete", before=left)
    await api_keys.publish_all(desk.pool, desk.cache, place.organization_id)
    return Answer()


async def _one(
    desk: Desk, organization_id: UUID, role: Role, grants: frozenset[str] = frozenset()
) -> OrganizationView:
    row = await desk.pool.fetchrow(_ONE, organization_id)
    assert row is not None, "the guard has seen it"
    return _view(row, role, grants)


def _view(row: Any, role: Role, grants: frozenset[str]) -> OrganizationView:
    policy: Policy = policy_of(Preset(row["preset"]), switches_in(row["switches"]))
    return OrganizationView(
        id=row["id"],
        name=row["name"],
        kind=row["kind"],
        description=row["description"],
        billing_email=row["billing_email"],
        time_zone=row["time_zone"],
        preset=Preset(row["preset"]),
        is_suspended=row["suspended_at"] is not None,
        ip_ranges=row["ip_ranges"],
        role=role,
        role_label=policy.labels[role],
        permissions=[one for one in Permission if one in grants or policy.allows(role, one)],
        created_at=row["created_at"],
        version=row["version"],
    )


def _check_zone(name: str) -> None:
    if name not in available_timezones():
        raise BadRequest(
            f"{name!r} is no time zone like Europe/Berlin.",
            code="invalid_time_zone",
            param="time_zone",
        )


def _too_many(most: int) -> Conflict:
    return Conflict(
        f"You own {most} organizations, the most by the plan of your own account. Delete one,"
        " or choose a larger plan there.",
        code="organizations_max",
    )


ROUTES = (
    Route(
        method="GET",
        path="/organizations",
        name="organizations.list",
        says="The organizations one is in, one's own account first.",
        access=person(Scope.ORGANIZATIONS_READ),
        handle=mine,
        answers=Page[OrganizationView],
    ),
    Route(
        method="POST",
        path="/organizations",
        name="organizations.create",
        says="Make an organization; who asks is its owner.",
        access=person(Scope.ORGANIZATIONS_WRITE),
        handle=create,
        body=NewOrganization,
        answers=OrganizationView,
        status=201,
        is_once=True,
        raises=(409,),
    ),
    Route(
        method="GET",
        path="/organization",
        name="organizations.get",
        says="The organization at hand.",
        access=member(Permission.ORGANIZATION_READ, Scope.ORGANIZATIONS_READ),
        handle=get,
        answers=OrganizationView,
    ),
    Route(
        method="PATCH",
        path="/organization",
        name="organizations.change",
        says="Change its name, description, billing address, time zone or IP ranges.",
        access=member(Permission.ORGANIZATION_UPDATE, Scope.ORGANIZATIONS_WRITE),
        handle=change,
        body=OrganizationChange,
        answers=OrganizationView,
    ),
    Route(
        method="POST",
        path="/organization/deletion",
        name="organizations.delete",
        says="End it for ever: its keys are dead at once, its records stay.",
        access=member(Permission.ORGANIZATION_DELETE, None),
        handle=delete,
        body=Ending,
        raises=(409,),
    ),
)

"""People: they sign up, prove their address, and have an account of their own from then on.

Whether an address is known is told to nobody but its owner, by mail: signing up and asking for
links are answered the same either way.
"""

import re
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import msgspec

from gateway.errors import BadRequest, Conflict, Forbidden
from gateway.management.bearers import BearerKind, issue, kind_of
from gateway.management.desk import Desk
from gateway.management.mails import Mail, post
from gateway.rest.caller import ANYBODY, SESSION, Scope, person
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from gateway.settings import SignUp
from ledger.bases import tell
from ledger.book import Book
from ledger.postgres import Connection

LINK_LIVES = timedelta(hours=24)
_LINKS_EVERY = timedelta(minutes=1)  # to one address, however often they are asked for

# As HTML has it for input type=email: what every mail server takes, and no header can hide in.
EMAIL_PATTERN = re.compile(
    r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$"
)
Email = Annotated[
    str,
    msgspec.Meta(pattern=EMAIL_PATTERN.pattern, max_length=254, examples=["ada@example.com"]),
]
PersonName = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Password = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Secret = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

_INSERT = """
    INSERT INTO person (id, email, name, password, created_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (lower(email)) DO NOTHING
    RETURNING id
"""
_BY_EMAIL = "SELECT id, email, verified_at FROM person WHERE lower(email) = $1"
_ONE = """
    SELECT id, email, name, verified_at, is_operator, account_id, otp_since, created_at, version
    FROM person WHERE id = $1
"""
_LINK = """
    INSERT INTO link (digest, purpose, person_id, created_at, expires_at)
    SELECT $1, $2, $3, $4, $5
    WHERE NOT EXISTS (
        SELECT FROM link WHERE person_id = $3 AND purpose = $2 AND created_at > $6
    )
    RETURNING digest
"""
_USE = """
    UPDATE link SET used_at = $3
    WHERE digest = $1 AND purpose = $2 AND used_at IS NULL AND expires_at > $3
    RETURNING person_id
"""
_WHOSE = """
    SELECT person_id FROM link
    WHERE digest = $1 AND purpose = $2 AND used_at IS NULL AND expires_at > $3
"""
VERIFY = "UPDATE person SET verified_at = coalesce(verified_at, $2) WHERE id = $1"
_SET_ACCOUNT = """
    UPDATE person SET account_id = $2, version = version + 1
    WHERE id = $1 AND account_id IS NULL
    RETURNING account_id
"""
_MEMBER = """
    INSERT INTO member (id, organization_id, email, name, role) VALUES ($1, $2, $3, $4, 'owner')
"""
_SEAT = "INSERT INTO seat (person_id, organization_id, member_id) VALUES ($1, $2, $3)"
_RENAME = """
    UPDATE person SET name = $2, version = version + 1
    WHERE id = $1 AND ($3::bigint IS NULL OR version = $3)
    RETURNING id
"""
_INVITED = """
    SELECT EXISTS (
        SELECT FROM invitation WHERE lower(email) = $1 AND ended_at IS NULL AND expires_at > $2
    )
"""


class NewPerson(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who wants to sign up."""

    email: Email
    password: Password
    name: PersonName = ""


class EmailOnly(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whom a link is to be sent to."""

    email: Email


class LinkSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stood in a link."""

    secret: Secret


class PersonChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed of oneself."""

    name: PersonName


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who can sign in."""

    id: UUID
    email: str
    name: str
    verified_at: datetime | None
    is_operator: bool
    account_id: UUID | None  # their own account, an organization of kind personal
    has_one_time_passwords: bool
    created_at: datetime
    version: int


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What happens now."""

    detail: str


class Found(NamedTuple):
    """A person as other resources need them."""

    id: UUID
    email: str
    is_verified: bool


async def sign_up(desk: Desk, asked: Asked[Nothing, NewPerson]) -> Answer:
    """Make an account and mail the link that proves the address."""
    wanted = asked.body
    email, now = wanted.email.lower(), desk.now()
    stored = await desk.passwords.hashed(wanted.password, known=[email, wanted.name])
    if not await may_sign_up(desk, email):
        raise not_invited()
    async with desk.pool.acquire() as connection, connection.transaction():
        made = await connection.fetchval(_INSERT, uuid4(), email, wanted.name, stored, now)
        if made is None:
            facts = {"site": desk.site}
            await post(connection, Mail(email, "known", facts), now)
        else:
            await send_link(desk, connection, made, email, "verify")
    return Answer(Accepted(detail=f"A mail was sent to {email}. Open the link in it."))


async def may_sign_up(desk: Desk, email: str) -> bool:
    """Whether who has this address may make an account here."""
    if desk.config.management.sign_up is SignUp.OPEN:
        return True
    return bool(await desk.pool.fetchval(_INVITED, email, desk.now()))


def not_invited() -> Forbidden:
    """What everybody else is told."""
    return Forbidden(
        "Only who was invited can sign up here. Ask an organization to invite this address.",
        code="invitation_required",
    )


async def send_verification(desk: Desk, asked: Asked[Nothing, EmailOnly]) -> Answer:
    """Mail the link again, if there is such an account and it is not verified yet."""
    email = asked.body.email.lower()
    async with desk.pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_BY_EMAIL, email)
        if row is not None and row["verified_at"] is None:
            await send_link(desk, connection, row["id"], email, "verify")
    return Answer(Accepted(detail=f"If {email} waits for it, a mail was sent."))


async def verify(desk: Desk, asked: Asked[Nothing, LinkSecret]) -> Answer:
    """Take the link as proof of the address, and make the person's own account."""
    async with desk.pool.acquire() as connection, connection.transaction():
        person_id = await used_link(desk, connection, asked.body.secret, "verify")
        await connection.execute(VERIFY, person_id, desk.now())
    await make_account(desk, person_id, address=asked.caller.address)
    return Answer(await one(desk, person_id))


async def me(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Oneself."""
    found = await one(desk, asked.caller.person)
    return Answer(found, found.version)


async def change_me(desk: Desk, asked: Asked[Nothing, PersonChange]) -> Answer:
    """Change one's own name."""
    person_id = asked.caller.person
    if await desk.pool.fetchval(_RENAME, person_id, asked.body.name, asked.if_match) is None:
        raise ChangedMeanwhile
    found = await one(desk, person_id)
    return Answer(found, found.version)


async def one(desk: Desk, person_id: UUID) -> Person:
    """A person who is known to exist."""
    row = await desk.pool.fetchrow(_ONE, person_id)
    assert row is not None, "people are never deleted"
    return Person(
        id=row["id"],
        email=row["email"],
        name=row["name"],
        verified_at=row["verified_at"],
        is_operator=row["is_operator"],
        account_id=row["account_id"],
        has_one_time_passwords=row["otp_since"] is not None,
        created_at=row["created_at"],
        version=row["version"],
    )


async def find(pool: asyncpg.Pool, email: str) -> Found | None:
    """Who has this address; None: nobody."""
    row = await pool.fetchrow(_BY_EMAIL, email.lower())
    return None if row is None else Found(row["id"], row["email"], row["verified_at"] is not None)


async def send_link(
    desk: Desk, connection: Connection, person_id: UUID, email: str, purpose: str
) -> None:
    """Mail a link that works once; the second one within a minute is not sent."""
    bearer, now = issue(BearerKind.LINK, desk.random_bytes, desk.digest), desk.now()
    made = await connection.fetchval(
        _LINK, bearer.digest, purpose, person_id, now, now + LINK_LIVES, now - _LINKS_EVERY
    )
    if made is None:
        return
    facts = {
        "site": desk.site,
        "hours": int(LINK_LIVES.total_seconds() // 3600),
        # Behind the #: browsers send it to nobody, so no log of a proxy has it.
        "link": f"{desk.site}/{purpose}#{bearer.secret.reveal()}",
    }
    await post(connection, Mail(email, purpose, facts), now)


async def linked(desk: Desk, secret: str, purpose: str) -> UUID:
    """Whose link this is; it goes on working. `BadRequest` as `used_link`."""
    person_id = await links_person(desk, secret, purpose)
    if person_id is None:
        raise _invalid_link()
    return person_id


async def used_link(desk: Desk, connection: Connection, secret: str, purpose: str) -> UUID:
    """Whose link this is; it works no more. `BadRequest` if it never did or does no more."""
    person_id = None
    if kind_of(secret) is BearerKind.LINK:
        person_id = await connection.fetchval(_USE, desk.digest(secret), purpose, desk.now())
    if person_id is None:
        raise _invalid_link()
    return UUID(str(person_id))


def _invalid_link() -> BadRequest:
    return BadRequest(
        "The link was used, is too old or is not whole. Ask for a new one.",
        code="invalid_link",
        param="secret",
    )


async def links_person(desk: Desk, secret: str, purpose: str) -> UUID | None:
    """Whose link this is, unused; None: it does not work."""
    if kind_of(secret) is not BearerKind.LINK:
        return None
    found = await desk.pool.fetchval(_WHOSE, desk.digest(secret), purpose, desk.now())
    return None if found is None else UUID(str(found))


async def make_account(desk: Desk, person_id: UUID, *, address: str | None) -> UUID:
    """The person's own account, made if there is none. Repeating it is harmless.

    What dies in between leaves an account that nobody is in, empty; the next try makes another.
    """
    found = await one(desk, person_id)
    if found.account_id is not None:
        return found.account_id
    book = Book(desk.pool)
    made = await book.create_organization(
        found.name or found.email, actor=found.email, kind="personal", address=address
    )
    account_id = UUID(made.id)
    async with desk.pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_SET_ACCOUNT, person_id, account_id) is None:
            raise Conflict("The account was made a moment ago.", code="account_exists")
        await join(connection, account_id, found)
    wallet = await book.wallet(made.id)
    assert wallet is not None, "an organization is made with its wallet"
    await tell(desk.pool, desk.redis, wallet)
    return account_id


async def join(connection: Connection, organization_id: UUID, whom: Person) -> UUID:
    """Make somebody an organization's first owner; their member id."""
    member_id = uuid4()
    await connection.execute(_MEMBER, member_id, organization_id, whom.email, whom.name)
    await connection.execute(_SEAT, whom.id, organization_id, member_id)
    return member_id


ROUTES = (
    Route(
        method="POST",
        path="/people",
        name="people.sign_up",
        says="Sign up; the address is proved by a mail.",
        access=ANYBODY,
        handle=sign_up,
        body=NewPerson,
        answers=Accepted,
        status=202,
        is_once=True,
        is_guessed=True,
        raises=(403,),
    ),
    Route(
        method="POST",
        path="/verifications",
        name="people.send_verification",
        says="Mail the link that proves an address again.",
        access=ANYBODY,
        handle=send_verification,
        body=EmailOnly,
        answers=Accepted,
        status=202,
        is_once=True,
        is_guessed=True,
    ),
    Route(
        method="POST",
        path="/verifications/confirm",
        name="people.verify",
        says="Prove an address by the secret of the link.",
        access=ANYBODY,
        handle=verify,
        body=LinkSecret,
        answers=Person,
        is_guessed=True,
        raises=(409,),
    ),
    Route(
        method="GET",
        path="/me",
        name="people.me",
        says="Oneself.",
        access=person(Scope.PROFILE_READ),
        handle=me,
        answers=Person,
    ),
    Route(
        method="PATCH",
        path="/me",
        name="people.change_me",
        says="Change one's own name.",
        access=SESSION,
        handle=change_me,
        body=PersonChange,
        answers=Person,
    ),
)

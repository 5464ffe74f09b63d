"""Sessions: signing in and out, and one's own open sessions.

A session is a cookie of 256 random bits that scripts cannot read; every sign-in makes a new one. It
ends after thirty days, after fourteen days unused, when its person ends it, or with their password.
Who has a second factor shows it at every sign-in.
"""

from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec

from gateway.errors import Forbidden, NotFound, Unauthenticated
from gateway.management import codes, notices, people
from gateway.management.bearers import BearerKind, issue
from gateway.management.codes import Code
from gateway.management.desk import Desk
from gateway.management.guard import SESSION_IDLE, csrf_of
from gateway.management.notices import Notice, What
from gateway.management.people import Accepted, Email, EmailOnly, Password, Person
from gateway.rest.caller import ANYBODY, SESSION
from gateway.rest.cursor import Page
from gateway.rest.rates import GUESSING
from gateway.rest.route import Answer, Asked, Nothing, Route
from gateway.rest.server import SESSION_COOKIE
from ledger.postgres import Connection

SESSION_LIVES = timedelta(days=30)
_SESSIONS_MAX = 50  # of one person; more are the oldest's end

_BY_EMAIL = """
    SELECT id, password, verified_at, disabled_at FROM person WHERE lower(email) = $1
"""
_STORED = "SELECT password FROM person WHERE id = $1"
_INSERT = """
    INSERT INTO session (id, person_id, digest, is_strong, address, agent,
                         created_at, seen_at, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)
"""
_OLDEST = """
    UPDATE session SET ended_at = $2 WHERE id IN (
        SELECT id FROM session WHERE person_id = $1 AND ended_at IS NULL
        ORDER BY created_at DESC OFFSET $3
    )
"""
_END = """
    UPDATE session SET ended_at = $3 WHERE person_id = $1 AND id = $2 AND ended_at IS NULL
    RETURNING id
"""
_END_ALL = """
    UPDATE session SET ended_at = $2
    WHERE person_id = $1 AND ended_at IS NULL AND id IS DISTINCT FROM $3
"""
_OPEN = """
    SELECT id, address, agent, is_strong, created_at, seen_at, expires_at FROM session
    WHERE person_id = $1 AND ended_at IS NULL AND expires_at > $2 AND seen_at > $3
    ORDER BY created_at DESC LIMIT 100
"""
_DIGEST = "SELECT digest FROM session WHERE id = $1"
_SET_PASSWORD = "UPDATE person SET password = $2, version = version + 1 WHERE id = $1"  # noqa: S105 - SQL


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who wants to sign in."""

    email: Email
    password: Password
    code: Code | None = None  # of the second factor, where there is one


class LinkSignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stood in the link, and the code of who has a second factor."""

    secret: people.Secret
    code: Code | None = None


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A password to replace the old one by the secret of a link."""

    secret: people.Secret
    password: Password


class PasswordChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A password to replace the old one."""

    old: Annotated[str, msgspec.Meta(max_length=200)]
    new: Password


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """The session at hand."""

    id: UUID
    person: Person
    csrf_token: str  # to be sent as X-CSRF-Token with every change


class OpenSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session that is open somewhere."""

    id: UUID
    is_this_one: bool
    is_strong: bool  # a second factor was shown
    address: str
    agent: str
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


async def sign_in(desk: Desk, asked: Asked[Nothing, SignIn]) -> Answer:
    """Sign in by password."""
    wanted = asked.body
    # By account as well: many machines may try, each a few times.
    desk.rates.take("account", wanted.email.lower(), GUESSING)
    row = await desk.pool.fetchrow(_BY_EMAIL, wanted.email.lower())
    stored = None if row is None or row["disabled_at"] is not None else row["password"]
    if not await desk.passwords.matches(wanted.password, stored) or row is None:
        raise Unauthenticated(
            "The address or the password is wrong.", code="wrong_credentials", param="password"
        )
    if row["verified_at"] is None:
        raise Forbidden(
            "Open the link in the mail we sent you first; POST /api/v1/verifications sends it"
            " again.",
            code="email_not_verified",
        )
    address = asked.caller.address
    is_strong = await codes.was_shown(desk, row["id"], wanted.code, address=address)
    return await signed_in(desk, asked, row["id"], is_strong=is_strong)


async def sign_in_by_link(desk: Desk, asked: Asked[Nothing, LinkSignIn]) -> Answer:
    """Sign in by a link that the command line printed.

    The session is never strong: nobody showed a password.
    """
    whose = await people.links_person(desk, asked.body.secret, "sign-in")
    if whose is not None:
        # Before the link is used: who forgot the code tries the same link again.
        await codes.was_shown(desk, whose, asked.body.code, address=asked.caller.address)
    async with desk.pool.acquire() as connection, connection.transaction():
        person_id = await people.used_link(desk, connection, asked.body.secret, "sign-in")
    await people.make_account(desk, person_id, address=asked.caller.address)
    return await signed_in(desk, asked, person_id, is_strong=False)


async def current(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """The session at hand, with the token for changes."""
    session_id = _session(asked)
    digest = await desk.pool.fetchval(_DIGEST, session_id)
    return Answer(await _session_view(desk, asked.caller.person, session_id, digest))


async def sign_out(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """End the session at hand."""
    await desk.pool.fetchval(_END, asked.caller.person, _session(asked), desk.now())
    return Answer(cookies={SESSION_COOKIE: None})


async def listed(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One's own open sessions, the newest first."""
    now = desk.now()
    rows = await desk.pool.fetch(_OPEN, asked.caller.person, now, now - SESSION_IDLE)
    found = [
        OpenSession(is_this_one=row["id"] == asked.caller.session_id, **dict(row)) for row in rows
    ]
    return Answer(Page[OpenSession](data=found, next_cursor=None))


async def end(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """End one of one's own sessions."""
    session_id = asked.id("session_id")
    if await desk.pool.fetchval(_END, asked.caller.person, session_id, desk.now()) is None:
        raise NotFound(f"You have no open session {session_id}.", code="session_not_found")
    return Answer()


async def change_password(desk: Desk, asked: Asked[Nothing, PasswordChange]) -> Answer:
    """Choose a new password; all other sessions end."""
    caller, wanted = asked.caller, asked.body
    found = await people.one(desk, caller.person)
    stored = await desk.pool.fetchval(_STORED, found.id)
    if not await desk.passwords.matches(wanted.old, stored):
        raise Forbidden("The old password is wrong.", code="wrong_credentials", param="old")
    stored = await desk.passwords.hashed(wanted.new, known=[found.email, found.name])
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(_SET_PASSWORD, found.id, stored)
        await connection.execute(_END_ALL, found.id, desk.now(), caller.session_id)
        told = Notice(What.PASSWORD_CHANGED, caller.address)
        await notices.post(desk, connection, found.id, told)
    return Answer()


async def send_reset(desk: Desk, asked: Asked[Nothing, EmailOnly]) -> Answer:
    """Mail a link for a new password, if there is such an account."""
    email = asked.body.email.lower()
    async with desk.pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_BY_EMAIL, email)
        if row is not None and row["disabled_at"] is None:
            await people.send_link(desk, connection, row["id"], email, "reset")
    return Answer(Accepted(detail=f"If {email} has an account, a mail was sent."))


async def reset_password(desk: Desk, asked: Asked[Nothing, NewPassword]) -> Answer:
    """Choose a new password by the secret of the link; every session ends.

    The link proves the address, too.
    """
    found = await people.one(desk, await people.linked(desk, asked.body.secret, "reset"))
    # Before the link is used: a password that is refused leaves it as it was.
    stored = await desk.passwords.hashed(asked.body.password, known=[found.email, found.name])
    async with desk.pool.acquire() as connection, connection.transaction():
        person_id = await people.used_link(desk, connection, asked.body.secret, "reset")
        await connection.execute(_SET_PASSWORD, person_id, stored)
        await connection.execute(people.VERIFY, person_id, desk.now())
        await connection.execute(_END_ALL, person_id, desk.now(), None)
        told = Notice(What.PASSWORD_CHANGED, asked.caller.address, "By a link that was mailed.")
        await notices.post(desk, connection, person_id, told)
    await people.make_account(desk, person_id, address=asked.caller.address)
    return Answer()


async def signed_in(
    desk: Desk, asked: Asked[Any, Any], person_id: UUID, *, is_strong: bool
) -> Answer:
    """A new session of somebody who proved who they are. `is_strong`: by two factors."""
    async with desk.pool.acquire() as connection, connection.transaction():
        session_id, cookie, digest = await _open(
            desk, connection, asked.caller.address, asked.agent, person_id, is_strong=is_strong
        )
    view = await _session_view(desk, person_id, session_id, digest)
    return Answer(view, cookies={SESSION_COOKIE: cookie})


async def _open(
    desk: Desk,
    connection: Connection,
    address: str,
    agent: str,
    person_id: UUID,
    *,
    is_strong: bool,
) -> tuple[UUID, str, bytes]:
    """A new session: its id, its cookie and the cookie's digest."""
    bearer = issue(BearerKind.SESSION, desk.random_bytes, desk.digest)
    now, session_id = desk.now(), uuid4()
    await connection.execute(
        _INSERT,
        session_id,
        person_id,
        bearer.digest,
        is_strong,
        address,
        agent,
        now,
        now + SESSION_LIVES,
    )
    await connection.execute(_OLDEST, person_id, now, _SESSIONS_MAX)
    return session_id, bearer.secret.reveal(), bearer.digest


async def _session_view(desk: Desk, person_id: UUID, session_id: UUID, digest: bytes) -> Session:
    found = await people.one(desk, person_id)
    return Session(id=session_id, person=found, csrf_token=csrf_of(digest))


def _session(asked: Asked[Nothing, Nothing]) -> UUID:
    assert asked.caller.session_id is not None, "the route is for sessions"
    return asked.caller.session_id


ROUTES = (
    Route(
        method="POST",
        path="/session",
        name="sessions.sign_in",
        says="Sign in; sets the session's cookie.",
        access=ANYBODY,
        handle=sign_in,
        body=SignIn,
        answers=Session,
        status=201,
        is_guessed=True,
        raises=(401, 403, 409),
    ),
    Route(
        method="POST",
        path="/session/link",
        name="sessions.sign_in_by_link",
        says="Sign in by a link that the command line printed.",
        access=ANYBODY,
        handle=sign_in_by_link,
        body=LinkSignIn,
        answers=Session,
        status=201,
        is_guessed=True,
        raises=(401, 409),
    ),
    Route(
        method="GET",
        path="/session",
        name="sessions.current",
        says="The session at hand, with the token for changes.",
        access=SESSION,
        handle=current,
        answers=Session,
    ),
    Route(
        method="DELETE",
        path="/session",
        name="sessions.sign_out",
        says="Sign out.",
        access=SESSION,
        handle=sign_out,
    ),
    Route(
        method="GET",
        path="/sessions",
        name="sessions.list",
        says="One's own open sessions.",
        access=SESSION,
        handle=listed,
        answers=Page[OpenSession],
    ),
    Route(
        method="DELETE",
        path="/sessions/{session_id}",
        name="sessions.end",
        says="End one of one's own sessions.",
        access=SESSION,
        handle=end,
    ),
    Route(
        method="PUT",
        path="/me/password",
        name="sessions.change_password",
        says="Choose a new password; all other sessions end.",
        access=SESSION,
        handle=change_password,
        body=PasswordChange,
        is_guessed=True,
    ),
    Route(
        method="POST",
        path="/password-resets",
        name="sessions.send_reset",
        says="Mail a link for a new password.",
        access=ANYBODY,
        handle=send_reset,
        body=EmailOnly,
        answers=Accepted,
        status=202,
        is_once=True,
        is_guessed=True,
    ),
    Route(
        method="POST",
        path="/password-resets/confirm",
        name="sessions.reset_password",
        says="Choose a new password by the secret of the link.",
        access=ANYBODY,
        handle=reset_password,
        body=NewPassword,
        is_guessed=True,
        raises=(409,),
    ),
)

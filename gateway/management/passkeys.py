"""Passkeys: somebody's own, made, listed, renamed and removed."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import msgspec

from gateway.errors import BadRequest, Conflict, NotFound
from gateway.management import authenticators, challenges, notices, people, ways
from gateway.management.authenticators import NoHostName, Refused, RelyingParty, User
from gateway.management.challenges import Purpose
from gateway.management.desk import Desk
from gateway.management.notices import Notice, What
from gateway.rest.caller import SESSION
from gateway.rest.cursor import Page
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route

PASSKEYS_MAX = 20  # of one person

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=64_000, pattern=r"^[A-Za-z0-9_-]+$")]
PasskeyName = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f\s][^\x00-\x1f\x7f]*$"),
]

_COLUMNS = "id, name, can_be_backed_up, is_backed_up, created_at, used_at, version"
_LISTED = f"SELECT {_COLUMNS} FROM passkey WHERE person_id = $1 ORDER BY created_at, id"  # noqa: S608 - columns
_ONE = f"SELECT {_COLUMNS} FROM passkey WHERE person_id = $1 AND id = $2"  # noqa: S608 - columns
_KNOWN = "SELECT credential_id FROM passkey WHERE person_id = $1"
_INSERT = """
    INSERT INTO passkey (id, person_id, credential_id, public_key, name, sign_count,
                         can_be_backed_up, is_backed_up, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (credential_id) DO NOTHING
    RETURNING id
"""
_RENAME = """
    UPDATE passkey SET name = $3, version = version + 1
    WHERE person_id = $1 AND id = $2 AND ($4::bigint IS NULL OR version = $4)
    RETURNING id
"""
_REMOVE = "DELETE FROM passkey WHERE person_id = $1 AND id = $2 RETURNING name"
_WEAK = """
    UPDATE session SET is_strong = false
    WHERE person_id = $1 AND ended_at IS NULL
      AND NOT EXISTS (SELECT FROM passkey WHERE person_id = $1)
      AND NOT EXISTS (SELECT FROM person WHERE id = $1 AND otp_since IS NOT NULL)
"""


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """What an authenticator says of a passkey that it made; base64url."""

    client_data: Text = msgspec.field(name="clientDataJSON")
    attestation_object: Text = msgspec.field(name="attestationObject")


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What `PublicKeyCredential.toJSON()` of a browser has of every passkey; base64url."""

    id: Text
    raw_id: Text = msgspec.field(name="rawId")
    type: Literal["public-key"]


class NewCredential(Credential, frozen=True, kw_only=True):
    """One by `navigator.credentials.create`."""

    response: Attestation


class NewPasskey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A passkey to be kept."""

    name: PasskeyName
    credential: NewCredential


class PasskeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed of one."""

    name: PasskeyName


class PasskeyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """For `PublicKeyCredential.parse...OptionsFromJSON`. The answer must come from this browser."""

    public_key: dict[str, Any]


class Passkey(msgspec.Struct, frozen=True, kw_only=True):
    """One of one's own passkeys."""

    id: UUID
    name: str
    can_be_backed_up: bool  # false: it never leaves its device, and is lost with it
    is_backed_up: bool
    created_at: datetime
    used_at: datetime | None
    version: int


async def start(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """What the browser is to ask an authenticator, so that it makes a passkey."""
    await ways.check_fresh(desk, asked)
    caller, party = asked.caller, party_of(desk)
    found = await people.one(desk, caller.person)
    rows = await desk.pool.fetch(_KNOWN, found.id)
    challenge = challenges.new(desk, Purpose.NEW_PASSKEY, session_id=caller.session_id)
    options = authenticators.registration(
        party,
        User(found.id.bytes, found.email, found.name),
        challenge=challenges.bytes_of(challenge.value),
        known=[row["credential_id"] for row in rows],
    )
    cookies = {challenges.COOKIE: challenges.sealed(desk, challenge)}
    return Answer(PasskeyOptions(public_key=options), cookies=cookies)


async def create(desk: Desk, asked: Asked[Nothing, NewPasskey]) -> Answer:
    """Keep a passkey that was just made."""
    await ways.check_fresh(desk, asked)
    person_id, wanted = asked.caller.person, asked.body
    challenge = await challenges.answered(desk, asked, Purpose.NEW_PASSKEY)
    try:
        made = authenticators.registered(
            party_of(desk),
            msgspec.to_builtins(wanted.credential),
            challenge=challenges.bytes_of(challenge.value),
        )
    except Refused as error:
        raise BadRequest(
            "The passkey cannot be used here: it must be made on a page of this site, by an"
            " authenticator that asks for a finger, a face or a PIN. Start again.",
            code="passkey_refused",
            param="credential",
        ) from error
    passkey_id = uuid4()
    async with desk.pool.acquire() as connection, connection.transaction():
        await ways.lock(connection, person_id)
        if len(await connection.fetch(_KNOWN, person_id)) >= PASSKEYS_MAX:
            raise Conflict(
                f"You have {PASSKEYS_MAX} passkeys. Remove one first.", code="too_many_passkeys"
            )
        row = (passkey_id, person_id, made.credential_id, made.public_key, wanted.name)
        state = (made.sign_count, made.can_be_backed_up, made.is_backed_up, desk.now())
        if await connection.fetchval(_INSERT, *row, *state) is None:
            raise Conflict("This passkey is known here already.", code="passkey_exists")
        told = Notice(What.PASSKEY_ADDED, asked.caller.address, f"It is called {wanted.name!r}.")
        await notices.post(desk, connection, person_id, told)
    found = await _one(desk, person_id, passkey_id)
    return Answer(found, found.version, cookies={challenges.COOKIE: None})


async def listed(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One's own passkeys, the oldest first."""
    rows = await desk.pool.fetch(_LISTED, asked.caller.person)
    return Answer(Page[Passkey](data=[Passkey(**dict(row)) for row in rows], next_cursor=None))


async def change(desk: Desk, asked: Asked[Nothing, PasskeyChange]) -> Answer:
    """Rename one."""
    person_id, passkey_id = asked.caller.person, asked.id("passkey_id")
    renamed = await desk.pool.fetchval(
        _RENAME, person_id, passkey_id, asked.body.name, asked.if_match
    )
    found = await _one(desk, person_id, passkey_id)
    if renamed is None:
        raise ChangedMeanwhile
    return Answer(found, found.version)


async def remove(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Remove one; sessions elsewhere end, as it may have opened them."""
    await ways.check_fresh(desk, asked)
    person_id, passkey_id = asked.caller.person, asked.id("passkey_id")
    async with desk.pool.acquire() as connection, connection.transaction():
        await ways.lock(connection, person_id)
        name = await connection.fetchval(_REMOVE, person_id, passkey_id)
        if name is None:
            raise _not_found(passkey_id)
        await ways.check_one_is_left(desk, connection, person_id)
        await ways.end_elsewhere(desk, connection, asked)
        await connection.execute(_WEAK, person_id)
        told = Notice(What.PASSKEY_REMOVED, asked.caller.address, f"It was called {name!r}.")
        await notices.post(desk, connection, person_id, told)
    return Answer()


def party_of(desk: Desk) -> RelyingParty:
    """Whom passkeys are for, here; `Conflict` if this installation has no host name."""
    try:
        return authenticators.relying_party(desk.site)
    except NoHostName as error:
        raise Conflict(
            "Passkeys belong to a host name, and management.public_url of this installation has"
            " none: set it to http://localhost:8081, or to https:// and a name.",
            code="no_host_name",
        ) from error


async def _one(desk: Desk, person_id: UUID, passkey_id: UUID) -> Passkey:
    row = await desk.pool.fetchrow(_ONE, person_id, passkey_id)
    if row is None:
        raise _not_found(passkey_id)
    return Passkey(**dict(row))


def _not_found(passkey_id: UUID) -> NotFound:
    return NotFound(f"You have no passkey {passkey_id}.", code="passkey_not_found")


_MINE = "/me/passkeys"
ROUTES = (
    Route(
        method="POST",
        path=_MINE + "/challenges",
        name="passkeys.start",
        says="What a browser is to ask an authenticator, so that it makes a passkey.",
        access=SESSION,
        handle=start,
        answers=PasskeyOptions,
        status=201,
        raises=(409,),
    ),
    Route(
        method="POST",
        path=_MINE,
        name="passkeys.create",
        says="Keep a passkey that was just made.",
        access=SESSION,
        handle=create,
        body=NewPasskey,
        answers=Passkey,
        status=201,
        is_guessed=True,
        raises=(409,),
    ),
    Route(
        method="GET",
        path=_MINE,
        name="passkeys.list",
        says="One's own passkeys.",
        access=SESSION,
        handle=listed,
        answers=Page[Passkey],
    ),
    Route(
        method="PATCH",
        path=_MINE + "/{passkey_id}",
        name="passkeys.change",
        says="Rename one.",
        access=SESSION,
        handle=change,
        body=PasskeyChange,
        answers=Passkey,
    ),
    Route(
        method="DELETE",
        path=_MINE + "/{passkey_id}",
        name="passkeys.remove",
        says="Remove one; sessions elsewhere end.",
        access=SESSION,
        handle=remove,
        raises=(409,),
    ),
)

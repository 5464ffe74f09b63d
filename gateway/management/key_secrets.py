"""The secrets of an API key beside its first: a new one for an old one, and each member's own.

All of them are one key, with one id, one budget and one set of limits, so a rotation neither resets
what was spent nor splits a report. Limits and budgets are the key's, whoever calls with it.
"""

from typing import Annotated
from uuid import UUID

import msgspec

from gateway.errors import Conflict, Forbidden
from gateway.keys import RANDOM_BYTES, issue, last4_of
from gateway.management import api_keys
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.key_forms import NewKeyView
from gateway.management.keyring import WRITE, manageable, one
from gateway.policy import Permission, SecretVisibility
from gateway.rest.caller import Scope, member
from gateway.rest.route import Answer, Asked, Nothing, Route
from gateway.sealing import SealBroken
from ledger.postgres import Connection

GRACE_S_MAX = 7 * 24 * 3600

_KEEP_FORMER = """
    INSERT INTO key_secret (digest, key_id, last4, ends_at)
    SELECT digest, id, last4, now() + make_interval(secs => $2) FROM api_key WHERE id = $1
"""
# Nothing older than the newest secret outlives this grace.
_END_OTHERS = """
    UPDATE key_secret SET ends_at = least(ends_at, now() + make_interval(secs => $2))
    WHERE key_id = $1
"""
_RENEW = """
    UPDATE api_key SET digest = $2, last4 = $3, version = version + 1
    WHERE id = $1 AND revoked_at IS NULL
    RETURNING id
"""
_OWN = """
    SELECT sealed FROM key_secret
    WHERE key_id = $1 AND member_id = $2 AND ends_at IS NULL
"""
_GIVE = """
    INSERT INTO key_secret (digest, key_id, member_id, last4, sealed) VALUES ($1, $2, $3, $4, $5)
"""
_END_MEMBERS = """
    UPDATE key_secret SET ends_at = now() WHERE member_id = $1 AND ends_at IS NULL
    RETURNING key_id
"""


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A new secret for an old one."""

    # How long the secrets of now go on working, seconds; 0: not at all.
    grace_s: Annotated[int, msgspec.Meta(ge=0, le=GRACE_S_MAX)]


class OwnSecretView(msgspec.Struct, frozen=True, kw_only=True):
    """A member's own secret of a shared key: calls with it are theirs."""

    key_id: UUID
    member_id: UUID
    last4: str
    secret: str


async def rotate(desk: Desk, asked: Asked[Nothing, Rotation]) -> Answer:
    """Give the key another secret; what it had before works until the grace is over.

    Members' own secrets end with the grace, too: they reveal theirs again.
    """
    place, grace_s = asked.caller.place, asked.body.grace_s
    found = await manageable(desk, place, asked.id("key_id"))
    new = issue(desk.random_bytes(RANDOM_BYTES))
    text = new.secret.reveal()
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(api_keys.LOCK, found.id)
        await connection.execute(_KEEP_FORMER, found.id, grace_s)
        await connection.execute(_END_OTHERS, found.id, grace_s)
        if await connection.fetchval(_RENEW, found.id, desk.digest(text), new.last4) is None:
            raise Conflict("This key was revoked meanwhile.", code="api_key_revoked")
        said = {"grace_s": grace_s, "last4": new.last4}
        was = {"last4": found.last4}
        await note(connection, asked, "key.rotate", target=str(found.id), before=was, after=said)
    await api_keys.publish_keys(desk.pool, desk.cache, [found.id])
    view = await one(desk, place, found.id)
    return Answer(NewKeyView(key=view, secret=text), view.version)


async def reveal(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One's own secret of a key, made at the first time and the same ever after."""
    place, key_id = asked.caller.place, asked.id("key_id")
    if place.policy.secret_visibility is not SecretVisibility.MEMBERS:
        raise Forbidden(
            "Secrets are shown once here, to who makes a key. Members see their own if the policy's"
            " secret_visibility is members.",
            code="secrets_shown_once",
        )
    if place.member_id is None:
        raise Forbidden(
            "This is for members, and the token is an organization's.", code="not_a_member"
        )
    found = await one(desk, place, key_id)
    if found.revoked_at is not None:
        raise Conflict("This key is revoked, for ever.", code="api_key_revoked")
    secret = await _own(desk, asked, key_id, place.member_id)
    return Answer(
        OwnSecretView(
            key_id=key_id,
            member_id=place.member_id,
            last4=last4_of(secret),
            secret=secret,
        )
    )


async def _own(desk: Desk, asked: Asked[Nothing, Nothing], key_id: UUID, member_id: UUID) -> str:
    owner = f"key {key_id} member {member_id}"
    async with desk.pool.acquire() as connection, connection.transaction():
        # Of two at once the second finds what the first has made.
        await connection.execute(api_keys.LOCK, key_id)
        sealed = await connection.fetchval(_OWN, key_id, member_id)
        if sealed is not None:
            return _opened(desk, sealed, owner)
        new = issue(desk.random_bytes(RANDOM_BYTES))
        secret = new.secret.reveal()
        sealed, digest = desk.sealer.seal(secret, owner), desk.digest(secret)
        await connection.execute(_GIVE, digest, key_id, member_id, new.last4, sealed)
        said = {"last4": new.last4, "member_id": str(member_id)}
        await note(connection, asked, "key.reveal", target=str(key_id), after=said)
    await api_keys.publish_keys(desk.pool, desk.cache, [key_id])
    return secret


def _opened(desk: Desk, sealed: bytes, owner: str) -> str:
    try:
        return desk.sealer.open(sealed, owner)
    except SealBroken as error:
        raise Conflict(
            "The secret cannot be read any more. Rotate the key; then each member has a new one.",
            code="secret_unreadable",
        ) from error


async def end_members(connection: Connection, member_id: UUID) -> list[UUID]:
    """End every secret of a member who goes, for good, even if they return; the keys, to publish.

    Gateways refuse the secrets of who is removed in any case; this keeps it so after a return.
    """
    return [row["key_id"] for row in await connection.fetch(_END_MEMBERS, member_id)]


ROUTES = (
    # No Idempotency-Key, for these two: the answer would be kept, and with it the secret.
    Route(
        method="POST",
        path="/api-keys/{key_id}/rotation",
        name="keys.rotate",
        says="Give the key another secret, shown this once; the old one works for a grace.",
        access=WRITE,
        handle=rotate,
        body=Rotation,
        answers=NewKeyView,
        status=201,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/api-keys/{key_id}/secret",
        name="keys.reveal",
        says="One's own secret of a shared key, where the policy shows secrets to members.",
        access=member(Permission.KEY_READ, Scope.KEYS_WRITE),
        handle=reveal,
        answers=OwnSecretView,
        raises=(409,),
    ),
)

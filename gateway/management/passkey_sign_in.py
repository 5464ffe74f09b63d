"""Signing in with a passkey, which says itself whose it is.

A passkey is two factors: something that one has, and a finger, a face or a PIN that it checks. Who
signs in with one is asked for no code, and the session is strong.
"""

import asyncpg
import msgspec

from gateway.errors import Unauthenticated
from gateway.management import authenticators, challenges, notices, sessions
from gateway.management.authenticators import Asserted, Refused
from gateway.management.challenges import Purpose
from gateway.management.desk import Desk
from gateway.management.notices import Notice, What
from gateway.management.passkeys import Credential, PasskeyOptions, Text, party_of
from gateway.management.sessions import Session
from gateway.rest.caller import ANYBODY
from gateway.rest.rates import GUESSING
from gateway.rest.route import Answer, Asked, Nothing, Route

_SHOWN = """
    SELECT k.id, k.person_id, k.public_key, k.sign_count, k.can_be_backed_up, k.name
    FROM passkey AS k JOIN person AS p ON p.id = k.person_id
    WHERE k.credential_id = $1 AND p.verified_at IS NOT NULL AND p.disabled_at IS NULL
    FOR NO KEY UPDATE OF k
"""
_USED = "UPDATE passkey SET sign_count = $2, is_backed_up = $3, used_at = $4 WHERE id = $1"


class Assertion(msgspec.Struct, frozen=True, kw_only=True):
    """What an authenticator signs; base64url."""

    client_data: Text = msgspec.field(name="clientDataJSON")
    authenticator_data: Text = msgspec.field(name="authenticatorData")
    signature: Text
    user_handle: Text = msgspec.field(name="userHandle")


class ShownCredential(Credential, frozen=True, kw_only=True):
    """One by `navigator.credentials.get`."""

    response: Assertion


class PasskeySignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A passkey that was used to sign in."""

    credential: ShownCredential


async def start_sign_in(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """What the browser is to ask an authenticator, so that it signs somebody in."""
    del asked
    party, challenge = party_of(desk), challenges.new(desk, Purpose.PASSKEY)
    options = authenticators.authentication(party, challenge=challenges.bytes_of(challenge.value))
    cookies = {challenges.COOKIE: challenges.sealed(desk, challenge)}
    return Answer(PasskeyOptions(public_key=options), cookies=cookies)


async def sign_in(desk: Desk, asked: Asked[Nothing, PasskeySignIn]) -> Answer:
    """Sign in with a passkey; it is both factors."""
    shown = asked.body.credential
    # By passkey as well: many machines may try one of somebody's, each a few times.
    desk.rates.take("passkey", shown.raw_id, GUESSING)
    challenge = await challenges.answered(desk, asked, Purpose.PASSKEY)
    person_id, was_copied = None, False
    async with desk.pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_SHOWN, _bytes(shown.raw_id))
        if row is None or _bytes(shown.response.user_handle) != row["person_id"].bytes:
            raise _refused()
        used = _used(desk, row, shown, challenges.bytes_of(challenge.value))
        person_id = row["person_id"]
        was_copied = max(used.sign_count, row["sign_count"]) > 0 and (
            used.sign_count <= row["sign_count"]
        )
        if was_copied:
            detail = f"{row['name']!r} was refused: its counter went back, as that of a copy does."
            told = Notice(What.PASSKEY_COPIED, asked.caller.address, detail)
            await notices.post(desk, connection, person_id, told)
        else:
            state = (used.sign_count, used.is_backed_up, desk.now())
            await connection.execute(_USED, row["id"], *state)
    if was_copied:  # after the transaction, whose mail must be sent
        raise Unauthenticated(
            "This passkey may have been copied, and is refused. Sign in another way and remove it.",
            code="passkey_copied",
            param="credential",
        )
    answer = await sessions.signed_in(desk, asked, person_id, is_strong=True)
    return answer._replace(cookies={**answer.cookies, challenges.COOKIE: None})


def _used(desk: Desk, row: asyncpg.Record, shown: ShownCredential, challenge: bytes) -> Asserted:
    try:
        used = authenticators.asserted(
            party_of(desk),
            msgspec.to_builtins(shown),
            challenge=challenge,
            public_key=row["public_key"],
        )
    except Refused as error:
        raise _refused() from error
    # It is fixed when a passkey is made, so another answer comes from something else.
    if used.can_be_backed_up != row["can_be_backed_up"]:
        raise _refused()
    return used


def _bytes(text: str) -> bytes:
    try:
        return challenges.bytes_of(text)
    except ValueError as error:
        raise _refused() from error


def _refused() -> Unauthenticated:
    return Unauthenticated(
        "This passkey does not sign in here. Start again with another, or sign in another way.",
        code="passkey_refused",
        param="credential",
    )


ROUTES = (
    Route(
        method="POST",
        path="/session/passkey/challenges",
        name="sessions.start_passkey",
        says="What a browser is to ask an authenticator, so that it signs somebody in.",
        access=ANYBODY,
        handle=start_sign_in,
        answers=PasskeyOptions,
        status=201,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/session/passkey",
        name="sessions.sign_in_by_passkey",
        says="Sign in with a passkey; no code is asked for.",
        access=ANYBODY,
        handle=sign_in,
        body=PasskeySignIn,
        answers=Session,
        status=201,
        is_guessed=True,
        raises=(401, 409),
    ),
)

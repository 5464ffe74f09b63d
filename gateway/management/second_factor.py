"""The second factor: one-time passwords of an authenticator app (RFC 6238), set up and ended.

A secret is on trial until a first code of it was shown.
"""

import base64
from typing import Annotated, NoReturn
from uuid import UUID

import asyncpg
import msgspec

from gateway.errors import Conflict, Forbidden
from gateway.management import codes, notices
from gateway.management.codes import Code
from gateway.management.desk import Desk
from gateway.management.notices import Notice, What
from gateway.rest.caller import SESSION
from gateway.rest.route import Answer, Asked, Nothing, Route

_SECRET_BYTES = 20  # as RFC 4226 recommends for SHA-1
_ISSUER = "Tollgate"

_ONE = "SELECT email, password, otp_secret, otp_since FROM person WHERE id = $1"
_TRIAL = """
    UPDATE person SET otp_secret = $2, otp_step = 0 WHERE id = $1 AND otp_since IS NULL
    RETURNING id
"""
_CONFIRM = """
    UPDATE person SET otp_since = $2, otp_step = $3, otp_wrong = 0, version = version + 1
    WHERE id = $1 AND otp_since IS NULL AND otp_secret = $4
    RETURNING id
"""
_REMOVE = """
    UPDATE person SET otp_secret = NULL, otp_since = NULL, otp_step = 0, version = version + 1
    WHERE id = $1
"""
_STRONG = "UPDATE session SET is_strong = true WHERE id = $1"
_WEAK = "UPDATE session SET is_strong = false WHERE person_id = $1 AND ended_at IS NULL"
_END_OTHERS = """
    UPDATE session SET ended_at = $2
    WHERE person_id = $1 AND ended_at IS NULL AND id IS DISTINCT FROM $3
"""


class OwnPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One's own password."""

    password: Annotated[str, msgspec.Meta(max_length=200)]


class CodeOnly(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A code of the second factor."""

    code: Code


class PasswordAndCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Both factors."""

    password: Annotated[str, msgspec.Meta(max_length=200)]
    code: Code


class OneTimeSecret(msgspec.Struct, frozen=True, kw_only=True):
    """What an authenticator app is given; shown once."""

    secret: str  # base32, to be typed
    uri: str  # otpauth://, to be scanned


class RecoveryCodes(msgspec.Struct, frozen=True, kw_only=True):
    """For the day the phone is lost; each works once in place of a code. Shown once."""

    codes: list[str]


async def start(desk: Desk, asked: Asked[Nothing, OwnPassword]) -> Answer:
    """Take a new secret on trial; an older trial ends."""
    person_id = asked.caller.person
    row = await _one(desk, person_id)
    if row["otp_since"] is not None:
        _refuse_second()
    if row["password"] is None:
        raise Conflict(
            "You have no password yet. Set one first: POST /api/v1/password-resets sends the link.",
            code="no_password",
        )
    await _check_password(desk, asked.body.password, row["password"])
    secret = base64.b32encode(desk.random_bytes(_SECRET_BYTES)).decode()
    sealed = desk.sealer.seal(secret, codes.owner(person_id))
    if await desk.pool.fetchval(_TRIAL, person_id, sealed) is None:
        _refuse_second()
    uri = codes.totp(secret).provisioning_uri(name=row["email"], issuer_name=_ISSUER)
    return Answer(OneTimeSecret(secret=secret, uri=uri))


async def confirm(desk: Desk, asked: Asked[Nothing, CodeOnly]) -> Answer:
    """End the trial by a first code; sessions elsewhere end, as they were opened without one."""
    person_id, session_id, now = asked.caller.person, asked.caller.session_id, desk.now()
    row = await _one(desk, person_id)
    if row["otp_since"] is not None:
        _refuse_second()
    if row["otp_secret"] is None:
        raise Conflict(
            "Ask for a secret first, at POST /api/v1/me/one-time-passwords.", code="no_trial"
        )
    await codes.count(desk, person_id)
    step = codes.step_of(desk, person_id, row["otp_secret"], asked.body.code)
    if step is None:
        raise codes.wrong_code()
    async with desk.pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_CONFIRM, person_id, now, step, row["otp_secret"]) is None:
            raise Conflict(
                "The trial was ended or replaced a moment ago. Look at GET /api/v1/me.",
                code="no_trial",
            )
        made = await codes.new_codes(desk, connection, person_id)
        await connection.execute(_STRONG, session_id)
        await connection.execute(_END_OTHERS, person_id, now, session_id)
        told = Notice(What.SECOND_FACTOR_ADDED, asked.caller.address)
        await notices.post(desk, connection, person_id, told)
    return Answer(RecoveryCodes(codes=made))


async def end(desk: Desk, asked: Asked[Nothing, PasswordAndCode]) -> Answer:
    """Do without a second factor again; sessions stay, but none is strong."""
    person_id = asked.caller.person
    row = await _confirmed(desk, person_id)
    await _check_password(desk, asked.body.password, row["password"])
    await codes.count(desk, person_id)
    async with desk.pool.acquire() as connection, connection.transaction():
        if not await codes.is_taken(
            desk, connection, person_id, asked.body.code, address=asked.caller.address
        ):
            raise codes.wrong_code()
        await connection.execute(_REMOVE, person_id)
        await connection.execute(codes.FORGET, person_id)
        await connection.execute(_WEAK, person_id)
        told = Notice(What.SECOND_FACTOR_REMOVED, asked.caller.address)
        await notices.post(desk, connection, person_id, told)
    return Answer()


async def renew_codes(desk: Desk, asked: Asked[Nothing, CodeOnly]) -> Answer:
    """Ten new recovery codes; the old ones are dead."""
    person_id = asked.caller.person
    await _confirmed(desk, person_id)
    await codes.count(desk, person_id)
    async with desk.pool.acquire() as connection, connection.transaction():
        if not await codes.is_taken(
            desk, connection, person_id, asked.body.code, address=asked.caller.address
        ):
            raise codes.wrong_code()
        made = await codes.new_codes(desk, connection, person_id)
        told = Notice(What.RECOVERY_CODES_RENEWED, asked.caller.address)
        await notices.post(desk, connection, person_id, told)
    return Answer(RecoveryCodes(codes=made))


def _refuse_second() -> NoReturn:
    raise Conflict(
        "You have one-time passwords. End them first, at POST"
        " /api/v1/me/one-time-passwords/removal.",
        code="one_time_passwords_exist",
    )


async def _one(desk: Desk, person_id: UUID) -> asyncpg.Record:
    row = await desk.pool.fetchrow(_ONE, person_id)
    assert row is not None, "people are never deleted"
    return row


async def _confirmed(desk: Desk, person_id: UUID) -> asyncpg.Record:
    row = await _one(desk, person_id)
    if row["otp_since"] is None:
        raise Conflict(
            "You have no one-time passwords. POST /api/v1/me/one-time-passwords sets them up.",
            code="no_one_time_passwords",
        )
    return row


async def _check_password(desk: Desk, password: str, stored: str | None) -> None:
    if not await desk.passwords.matches(password, stored):
        raise Forbidden("The password is wrong.", code="wrong_credentials", param="password")


ROUTES = (
    # No Idempotency-Key, for any of them: the answer would be kept, and with it the secrets.
    Route(
        method="POST",
        path="/me/one-time-passwords",
        name="second_factor.start",
        says="Ask for a secret for an authenticator app; it is on trial until it is confirmed.",
        access=SESSION,
        handle=start,
        body=OwnPassword,
        answers=OneTimeSecret,
        status=201,
        is_guessed=True,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/me/one-time-passwords/confirmation",
        name="second_factor.confirm",
        says="Show a first code: sign-ins want one from now on, and sessions elsewhere end.",
        access=SESSION,
        handle=confirm,
        body=CodeOnly,
        answers=RecoveryCodes,
        is_guessed=True,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/me/one-time-passwords/removal",
        name="second_factor.end",
        says="Do without a second factor again.",
        access=SESSION,
        handle=end,
        body=PasswordAndCode,
        is_guessed=True,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/me/recovery-codes",
        name="second_factor.renew_codes",
        says="Ten new recovery codes; the old ones work no more.",
        access=SESSION,
        handle=renew_codes,
        body=CodeOnly,
        answers=RecoveryCodes,
        status=201,
        is_guessed=True,
        raises=(409,),
    ),
)

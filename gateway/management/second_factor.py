"""The second factor: one-time passwords of an authenticator app (RFC 6238), and recovery codes.

A secret is on trial until a first code of it was shown. A code works once, and so does a recovery
code. Every code is counted as a wrong one before it is looked at, and the count starts again with a
right one: however many are sent at once, ten of them are looked at.
"""

import base64
import hmac
from datetime import timedelta
from typing import Annotated, NoReturn
from uuid import UUID

import asyncpg
import msgspec
import pyotp

from gateway.errors import Conflict, Forbidden, TooMany, Unauthenticated
from gateway.management.desk import Desk
from gateway.rest.caller import SESSION
from gateway.rest.route import Answer, Asked, Nothing, Route
from gateway.sealing import SealBroken
from ledger.postgres import Connection

WRONG_MAX = 10  # codes in a row, of one person
WRONG_WINDOW = timedelta(minutes=15)
RECOVERY_CODES = 10
_STEP_S = 30
_DIGITS = 6
_DRIFT_STEPS = 1  # either way: the clocks of phones
_SECRET_BYTES = 20  # as RFC 4226 recommends for SHA-1
_ISSUER = "Tollgate"

# Without i, l, o and u: Crockford's alphabet, in which nobody misreads one for another.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RECOVERY_CHARACTERS = 10  # of 5 bits each
_MISREAD = str.maketrans("oil", "011", " -")

_WRONG = (
    "The code is wrong or was used. Wait for the next one of your app, or send a recovery code."
)

Code = Annotated[str, msgspec.Meta(min_length=1, max_length=40, examples=["123456"])]

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
_COUNT = """
    UPDATE person
    SET otp_wrong = CASE WHEN otp_wrong > 0 AND otp_wrong_since > $3 THEN otp_wrong ELSE 0 END + 1,
        otp_wrong_since =
            CASE WHEN otp_wrong > 0 AND otp_wrong_since > $3 THEN otp_wrong_since ELSE $2 END
    WHERE id = $1 AND (otp_wrong < $4 OR otp_wrong_since <= $3)
    RETURNING otp_wrong
"""
_COUNTED_SINCE = "SELECT otp_wrong_since FROM person WHERE id = $1"
# Whoever wants the codes of one person takes turns, and always here first.
_LOCK = """
    SELECT otp_secret FROM person WHERE id = $1 AND otp_since IS NOT NULL FOR NO KEY UPDATE
"""
_TAKE_STEP = """
    UPDATE person SET otp_step = $2, otp_wrong = 0 WHERE id = $1 AND otp_step < $2 RETURNING id
"""
_TAKE_RECOVERY = """
    UPDATE recovery_code SET used_at = $3
    WHERE person_id = $1 AND digest = $2 AND used_at IS NULL
    RETURNING person_id
"""
_NONE_WRONG = "UPDATE person SET otp_wrong = 0 WHERE id = $1"
_FORGET_CODES = "DELETE FROM recovery_code WHERE person_id = $1"
_ADD_CODES = "INSERT INTO recovery_code (person_id, digest) SELECT $1, unnest($2::bytea[])"
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
    sealed = desk.sealer.seal(secret, _owner(person_id))
    if await desk.pool.fetchval(_TRIAL, person_id, sealed) is None:
        _refuse_second()
    uri = _totp(secret).provisioning_uri(name=row["email"], issuer_name=_ISSUER)
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
    await _count(desk, person_id)
    text = _plain(asked.body.code)
    step = _step_of(desk, person_id, row["otp_secret"], text) if text.isascii() else None
    if step is None:
        raise _wrong_code()
    async with desk.pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_CONFIRM, person_id, now, step, row["otp_secret"]) is None:
            raise Conflict(
                "The trial was ended or replaced a moment ago. Look at GET /api/v1/me.",
                code="no_trial",
            )
        codes = await _new_codes(desk, connection, person_id)
        await connection.execute(_STRONG, session_id)
        await connection.execute(_END_OTHERS, person_id, now, session_id)
    return Answer(RecoveryCodes(codes=codes))


async def end(desk: Desk, asked: Asked[Nothing, PasswordAndCode]) -> Answer:
    """Do without a second factor again; sessions stay, but none is strong."""
    person_id = asked.caller.person
    row = await _confirmed(desk, person_id)
    await _check_password(desk, asked.body.password, row["password"])
    await _count(desk, person_id)
    async with desk.pool.acquire() as connection, connection.transaction():
        if not await _is_taken(desk, connection, person_id, asked.body.code):
            raise _wrong_code()
        await connection.execute(_REMOVE, person_id)
        await connection.execute(_FORGET_CODES, person_id)
        await connection.execute(_WEAK, person_id)
    return Answer()


async def renew_codes(desk: Desk, asked: Asked[Nothing, CodeOnly]) -> Answer:
    """Ten new recovery codes; the old ones are dead."""
    person_id = asked.caller.person
    await _confirmed(desk, person_id)
    await _count(desk, person_id)
    async with desk.pool.acquire() as connection, connection.transaction():
        if not await _is_taken(desk, connection, person_id, asked.body.code):
            raise _wrong_code()
        codes = await _new_codes(desk, connection, person_id)
    return Answer(RecoveryCodes(codes=codes))


async def was_shown(desk: Desk, person_id: UUID, code: str | None) -> bool:
    """Whether who signs in showed a second factor; False: they have none.

    `Unauthenticated`: they have one, and the code is wrong or missing. Ask only once everything
    else about them was right: the answer tells that they have one.
    """
    row = await _one(desk, person_id)
    if row["otp_since"] is None:
        return False
    if code is None:
        raise Unauthenticated(
            "Send `code` too: a code of your authenticator app, or a recovery code.",
            code="second_factor_required",
            param="code",
        )
    await _count(desk, person_id)
    async with desk.pool.acquire() as connection, connection.transaction():
        if not await _is_taken(desk, connection, person_id, code):
            raise Unauthenticated(_WRONG, code="wrong_code", param="code")
    return True


def _wrong_code() -> Forbidden:
    return Forbidden(_WRONG, code="wrong_code", param="code")


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


async def _count(desk: Desk, person_id: UUID) -> None:
    """Count a code before it is looked at, for good; `TooMany` if enough were wrong."""
    now = desk.now()
    if await desk.pool.fetchval(_COUNT, person_id, now, now - WRONG_WINDOW, WRONG_MAX) is not None:
        return
    since = await desk.pool.fetchval(_COUNTED_SINCE, person_id)
    wait = max(since + WRONG_WINDOW - now, timedelta(seconds=1))
    raise TooMany(
        f"{WRONG_MAX} codes in a row were wrong. Try again in {int(wait.total_seconds())} s.",
        code="too_many_wrong_codes",
        retry_after_ms=int(wait.total_seconds() * 1000),
        scope="codes",
    )


async def _is_taken(desk: Desk, connection: Connection, person_id: UUID, code: str) -> bool:
    """Whether the code is right; it works no more, if the transaction is committed."""
    sealed, text = await connection.fetchval(_LOCK, person_id), _plain(code)
    if sealed is None or not text.isascii():
        return False
    if len(text) == _DIGITS:
        step = _step_of(desk, person_id, sealed, text)
        return step is not None and (
            await connection.fetchval(_TAKE_STEP, person_id, step) is not None
        )
    digest = _recovery_digest(desk, text)
    if await connection.fetchval(_TAKE_RECOVERY, person_id, digest, desk.now()) is None:
        return False
    await connection.execute(_NONE_WRONG, person_id)
    return True


def _step_of(desk: Desk, person_id: UUID, sealed: bytes, text: str) -> int | None:
    """The step whose code this is; None: of none that is near."""
    try:
        totp = _totp(desk.sealer.open(sealed, _owner(person_id)))
    except SealBroken as error:
        raise Conflict(
            "The secret of your one-time passwords cannot be read any more. Send a recovery code,"
            " then set them up anew.",
            code="secret_unreadable",
        ) from error
    at = int(desk.now().timestamp()) // _STEP_S
    for step in range(at - _DRIFT_STEPS, at + _DRIFT_STEPS + 1):
        if hmac.compare_digest(totp.generate_otp(step).encode(), text.encode()):
            return step
    return None


async def _new_codes(desk: Desk, connection: Connection, person_id: UUID) -> list[str]:
    codes = [_recovery_code(desk) for _ in range(RECOVERY_CODES)]
    await connection.execute(_FORGET_CODES, person_id)
    digests = [_recovery_digest(desk, _plain(code)) for code in codes]
    await connection.execute(_ADD_CODES, person_id, digests)
    return codes


def _recovery_code(desk: Desk) -> str:
    """50 random bits, in two halves that can be read out."""
    drawn = desk.random_bytes(_RECOVERY_CHARACTERS)
    text = "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in drawn)
    half = _RECOVERY_CHARACTERS // 2
    return f"{text[:half]}-{text[half:]}"


def _recovery_digest(desk: Desk, text: str) -> bytes:
    return desk.digest(f"recovery {text}")


def _plain(code: str) -> str:
    """The code as it was meant: case, spaces and dashes do not matter."""
    return code.lower().translate(_MISREAD)


def _totp(secret: str) -> pyotp.TOTP:
    return pyotp.TOTP(secret, digits=_DIGITS, interval=_STEP_S)


def _owner(person_id: UUID) -> str:
    return f"otp {person_id}"


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

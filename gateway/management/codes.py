"""What somebody shows as a second factor: a code of their authenticator app, or a recovery code.

A code works once. Every one is counted as a wrong one before it is looked at, and the count starts
again with a right one: however many are sent at once, ten of them are looked at.
"""

import hmac
from datetime import timedelta
from typing import Annotated
from uuid import UUID

import msgspec
import pyotp

from gateway.errors import Conflict, Forbidden, TooMany, Unauthenticated
from gateway.management import notices
from gateway.management.desk import Desk
from gateway.management.notices import Notice, What
from gateway.sealing import SealBroken
from ledger.postgres import Connection

WRONG_MAX = 10  # codes in a row, of one person
WRONG_WINDOW = timedelta(minutes=15)
RECOVERY_CODES = 10
_STEP_S = 30
_DIGITS = 6
_DRIFT_STEPS = 1  # either way: the clocks of phones

# Without i, l, o and u: Crockford's alphabet, in which nobody misreads one for another.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RECOVERY_CHARACTERS = 10  # of 5 bits each
_MISREAD = str.maketrans("oil", "011", " -")

_WRONG = (
    "The code is wrong or was used. Wait for the next one of your app, or send a recovery code."
)

Code = Annotated[str, msgspec.Meta(min_length=1, max_length=40, examples=["123456"])]

_SINCE = "SELECT otp_since FROM person WHERE id = $1"
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
FORGET = "DELETE FROM recovery_code WHERE person_id = $1"
_ADD_CODES = "INSERT INTO recovery_code (person_id, digest) SELECT $1, unnest($2::bytea[])"
_LEFT = "SELECT count(*) FROM recovery_code WHERE person_id = $1 AND used_at IS NULL"


async def are_wanted(desk: Desk, person_id: UUID) -> bool:
    """Whether this person has a second factor to show codes of."""
    return await desk.pool.fetchval(_SINCE, person_id) is not None


async def was_shown(desk: Desk, person_id: UUID, code: str | None, *, address: str) -> bool:
    """Whether who signs in showed a second factor; False: they have none.

    `Unauthenticated`: they have one, and the code is wrong or missing. Ask only once everything
    else about them was right: the answer tells that they have one.
    """
    if not await are_wanted(desk, person_id):
        return False
    if code is None:
        raise Unauthenticated(
            "Send `code` too: a code of your authenticator app, or a recovery code.",
            code="second_factor_required",
            param="code",
        )
    await count(desk, person_id)
    async with desk.pool.acquire() as connection, connection.transaction():
        if not await is_taken(desk, connection, person_id, code, address=address):
            raise Unauthenticated(_WRONG, code="wrong_code", param="code")
    return True


def wrong_code() -> Forbidden:
    """What somebody who is signed in is told; tell it once the code is counted."""
    return Forbidden(_WRONG, code="wrong_code", param="code")


async def count(desk: Desk, person_id: UUID) -> None:
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


async def is_taken(
    desk: Desk, connection: Connection, person_id: UUID, code: str, *, address: str
) -> bool:
    """Whether the code is right; it works no more, if the transaction is committed.

    Whose it is hears by mail that a recovery code was used, and from which address.
    """
    sealed, text = await connection.fetchval(_LOCK, person_id), _plain(code)
    if sealed is None or not text.isascii():
        return False
    if len(text) == _DIGITS:
        step = step_of(desk, person_id, sealed, code)
        return step is not None and (
            await connection.fetchval(_TAKE_STEP, person_id, step) is not None
        )
    digest = _recovery_digest(desk, text)
    if await connection.fetchval(_TAKE_RECOVERY, person_id, digest, desk.now()) is None:
        return False
    await connection.execute(_NONE_WRONG, person_id)
    left = await connection.fetchval(_LEFT, person_id)
    told = Notice(What.RECOVERY_CODE_USED, address, f"{left} of them are left.")
    await notices.post(desk, connection, person_id, told)
    return True


def step_of(desk: Desk, person_id: UUID, sealed: bytes, code: str) -> int | None:
    """The step whose code this is; None: of none that is near. `Conflict`: nobody can tell."""
    text = _plain(code)
    if not text.isascii():
        return None
    try:
        app = totp(desk.sealer.open(sealed, owner(person_id)))
    except SealBroken as error:
        raise Conflict(
            "The secret of your one-time passwords cannot be read any more. Send a recovery code,"
            " then set them up anew.",
            code="secret_unreadable",
        ) from error
    at = int(desk.now().timestamp()) // _STEP_S
    for step in range(at - _DRIFT_STEPS, at + _DRIFT_STEPS + 1):
        if hmac.compare_digest(app.generate_otp(step).encode(), text.encode()):
            return step
    return None


def totp(secret: str) -> pyotp.TOTP:
    """The one-time passwords of this secret, which is base32."""
    return pyotp.TOTP(secret, digits=_DIGITS, interval=_STEP_S)


def owner(person_id: UUID) -> str:
    """Whom the secret is sealed for."""
    return f"otp {person_id}"


async def new_codes(desk: Desk, connection: Connection, person_id: UUID) -> list[str]:
    """Ten new recovery codes, as texts that nobody can read again; the old ones are dead."""
    codes = [_recovery_code(desk) for _ in range(RECOVERY_CODES)]
    await connection.execute(FORGET, person_id)
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

"""Challenges: what a browser is sent away with and must come back with, once and soon.

One is a sealed cookie, so that asking for it writes nothing: strangers may ask as often as they
like. Only an answer leaves a row behind, which makes it the last to the same challenge.
"""

import base64
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from gateway.errors import BadRequest
from gateway.management.desk import Desk
from gateway.rest.route import Asked
from gateway.sealing import SealBroken

COOKIE = "tollgate_challenge"
LIVES = timedelta(minutes=10)  # somebody looks for their key, or reads what an issuer asks
_VALUE_BYTES = 32

# Those that would have expired go with the next one; SKIP LOCKED, as two may clear up at once.
_USE = """
    WITH expired AS (
        DELETE FROM used_challenge WHERE digest IN (
            SELECT digest FROM used_challenge WHERE expires_at <= $3
            LIMIT 100 FOR UPDATE SKIP LOCKED
        )
    )
    INSERT INTO used_challenge (digest, expires_at) VALUES ($1, $2)
    ON CONFLICT (digest) DO NOTHING
    RETURNING digest
"""


class Purpose(StrEnum):
    """What a challenge is for; it is of no use for anything else."""

    NEW_PASSKEY = "new passkey"
    PASSKEY = "passkey"
    ISSUER = "issuer"  # sign in there
    LINK = "link"  # link an identity there
    CODE = "code"  # signed in at an issuer, and a code of the second factor is wanted besides


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """One challenge."""

    purpose: Purpose
    value: str  # base64url of random bytes: what is signed, or the state
    expires_at: datetime
    session_id: UUID | None = None  # of who is signed in; None: of anybody
    person_id: UUID | None = None
    issuer: str = ""  # its name
    nonce: str = ""
    verifier: str = ""


def new(desk: Desk, purpose: Purpose, **facts: Any) -> Challenge:
    """A new one; `facts` are the fields of its purpose."""
    return Challenge(
        purpose=purpose, value=random_text(desk), expires_at=desk.now() + LIVES, **facts
    )


def random_text(desk: Desk) -> str:
    """256 random bits as base64url."""
    return _base64(desk.random_bytes(_VALUE_BYTES))


def bytes_of(value: str) -> bytes:
    """The bytes of a value made here."""
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


def sealed(desk: Desk, challenge: Challenge) -> str:
    """As the browser keeps it: nobody can read or change it."""
    text = msgspec.json.encode(challenge).decode()
    return _base64(desk.sealer.seal(text, _owner(challenge.purpose)))


async def answered(desk: Desk, asked: Asked[Any, Any], purpose: Purpose) -> Challenge:
    """The challenge of this browser, which is used now; `BadRequest` if it has none that is good.

    Used however the answer turns out: who gets it wrong starts again.
    """
    found = good(desk, asked, asked.cookies.get(COOKIE), purpose)
    await use(desk, found)
    return found


def good(desk: Desk, asked: Asked[Any, Any], text: str | None, purpose: Purpose) -> Challenge:
    """What is sealed there, if it is for this and not too old; `BadRequest`. It may be used."""
    try:
        raw = base64.urlsafe_b64decode((text or "").encode("ascii") + b"==")
        found = msgspec.json.decode(desk.sealer.open(raw, _owner(purpose)), type=Challenge)
    except (ValueError, SealBroken) as error:
        raise _no_good() from error
    if found.expires_at <= desk.now() or found.session_id not in {None, asked.caller.session_id}:
        raise _no_good()
    return found


async def use(desk: Desk, challenge: Challenge) -> None:
    """It works no more; `BadRequest` if it did not before."""
    digest = desk.digest(f"challenge {challenge.value}")
    if await desk.pool.fetchval(_USE, digest, challenge.expires_at, desk.now()) is None:
        raise _no_good()


def _no_good() -> BadRequest:
    return BadRequest(
        "Start again: this was begun in another browser, too long ago, or was answered already.",
        code="invalid_challenge",
    )


def _owner(purpose: Purpose) -> str:
    return f"challenge {purpose.value}"


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

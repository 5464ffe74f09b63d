"""Passwords: how good one must be, and how it is kept. argon2id, off the event loop."""

import asyncio
import secrets
from collections.abc import Sequence

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn import zxcvbn  # type: ignore[import-untyped]  # it ships no types

from gateway.errors import BadRequest

CHARACTERS_MIN, CHARACTERS_MAX = 10, 200
_JUDGED_MAX = 72  # characters: the judge takes seconds for thousands, and these suffice
_SCORE_MIN = 3  # of 0..4: safe against ten thousand guesses a second, by zxcvbn's reckoning

# RFC 9106's second choice: 64 MiB and three passes, 4 lanes; some 50 ms of a core.
HASHER = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=4)
_AT_ONCE = 2  # 64 MiB each: a crowd that signs in waits, instead of filling memory


class Passwords:
    """Judges, hashes and compares."""

    def __init__(self, hasher: PasswordHasher = HASHER) -> None:
        self._hasher, self._turns = hasher, asyncio.Semaphore(_AT_ONCE)
        self._nobodys = ""  # of no password at all, made when it is needed first

    async def hashed(self, password: str, *, known: Sequence[str]) -> str:
        """The hash to store; `BadRequest` if it is too easily guessed.

        `known` is what anybody knows of the person: address and name make bad passwords.
        """
        if not CHARACTERS_MIN <= len(password) <= CHARACTERS_MAX:
            raise BadRequest(
                f"A password has {CHARACTERS_MIN} to {CHARACTERS_MAX} characters.",
                code="weak_password",
                param="password",
            )
        async with self._turns:
            judged = await asyncio.to_thread(zxcvbn, password[:_JUDGED_MAX], list(known))
            if judged["score"] < _SCORE_MIN:
                why = judged["feedback"]["warning"] or "It is easily guessed."
                raise BadRequest(
                    f"{why.rstrip('.')}. Choose another: a few words that have nothing to do with"
                    " each other are good.",
                    code="weak_password",
                    param="password",
                )
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether this is the password; takes as long where there is none to compare with."""
        async with self._turns:
            try:
                return await asyncio.to_thread(self._verified, password, stored)
            except (VerificationError, InvalidHashError):
                return False

    def _verified(self, password: str, stored: str | None) -> bool:
        if stored is not None:
            return self._hasher.verify(stored, password)
        self._nobodys = self._nobodys or self._hasher.hash(secrets.token_urlsafe(32))
        self._hasher.verify(self._nobodys, password)
        return False

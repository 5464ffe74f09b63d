"""Callers that go on whatever happens. Their own log says what was answered, and nothing else does.

Each call carries a nonce, which the vendor's log has in the body it saw: so an answer, what the
vendor billed for it and its record can be laid side by side.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec

from tests.scenarios.caller import CHAT, Answer, Caller
from tests.scenarios.caller import request as request_bytes
from tests.scenarios.deployment import Deployment, Key

PATIENCE_S = 30.0
LEAVING_SHARE = 0.02
_PAUSE_S = 0.05  # after a call that came to nothing
_NONCE = "nonce-"


class Answered(NamedTuple):
    """A call whose last byte came."""

    call_id: str
    organization_id: str
    input_tokens: int
    output_tokens: int


class Asking(NamedTuple):
    """One call as it is made."""

    nonce: str
    body: dict[str, Any]
    leaves_s: float | None  # when the caller hangs up; None: it does not

    @classmethod
    def drawn(cls, chance: random.Random, nonce: str) -> "Asking":
        """Some cost more than is held for them, some are streams, some callers leave."""
        script = {
            "input_tokens": chance.randrange(1, 400),
            "output_tokens": chance.randrange(1, 30),
            "first_s": chance.choice([0.0, 0.01, 0.05]),
            "interval_s": 0.002,
        }
        body = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": f"{_NONCE}{nonce}"}],
            "max_tokens": 30,
            "stream": chance.random() < 0.5,
            "vendor_script": script,
        }
        leaves = chance.random() < LEAVING_SHARE
        return cls(nonce, body, chance.uniform(0, 0.06) if leaves else None)


def nonce_in(body: str) -> str:
    """The nonce of a request that the vendor has seen."""
    return body.split(_NONCE, 1)[1].split('"', 1)[0]


class Load:
    """Many callers of many keys, until told to stop."""

    def __init__(self, tollgate: Deployment, keys: list[Key], seed: int) -> None:
        self._tollgate, self._keys, self._seed = tollgate, keys, seed
        self._calls = 0
        self._stop = asyncio.Event()
        self.in_flight: set[int] = set()  # local ports of callers that wait for an answer
        self.answered: dict[str, Answered] = {}  # by nonce
        self.refused: dict[int, int] = {}  # answers that were no 200, by status
        self.unanswered = 0  # cut, or the caller left

    @asynccontextmanager
    async def running(self, callers: int) -> AsyncIterator[None]:
        """Call meanwhile; at the end every caller ends its call and makes no more."""
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(self._caller(number))
            try:
                yield
            finally:
                self._stop.set()

    async def until(self, count: int, *, within_s: float) -> None:
        """Wait for so many more answers; `TimeoutError`."""
        wanted = len(self.answered) + count
        async with asyncio.timeout(within_s):
            while len(self.answered) < wanted:
                await asyncio.sleep(0.005)

    async def _caller(self, number: int) -> None:
        key = self._keys[number % len(self._keys)]
        chance = random.Random(f"{self._seed}/{number}")  # noqa: S311 - a test that can be repeated
        while not self._stop.is_set():
            try:
                async with Caller.at("127.0.0.1", self._tollgate.ports.get("data", 0)) as line:
                    while not self._stop.is_set():
                        self._calls += 1
                        asking = Asking.drawn(chance, f"{self._seed}x{self._calls}")
                        await self._call(line, key, asking)
            except (OSError, EOFError):
                self.unanswered += 1
                await asyncio.sleep(_PAUSE_S)

    async def _call(self, line: Caller, key: Key, asking: Asking) -> None:
        """One call; raises what `Caller` does when no whole answer comes, and `WrongAnswer`."""
        self.in_flight.add(line.port)
        try:
            async with asyncio.timeout(asking.leaves_s or PATIENCE_S):
                await line.send(request_bytes(CHAT, key.secret, asking.body))
                answer = await line.answer()
        finally:
            self.in_flight.discard(line.port)
        if answer.status != 200:
            self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
            await asyncio.sleep(_PAUSE_S)
            return
        self._check(answer, asking)
        script = asking.body["vendor_script"]
        self.answered[asking.nonce] = Answered(
            answer.headers["x-request-id"],
            key.organization_id,
            script["input_tokens"],
            script["output_tokens"],
        )

    def _check(self, answer: Answer, asking: Asking) -> None:
        """The answer is whole, and this call's: another's would say other numbers."""
        if asking.body["stream"]:
            if not answer.body.endswith(b"data: [DONE]\n\n"):
                raise WrongAnswer(f"the stream of {asking} did not end: {answer.body[-200:]!r}")
            return
        usage = msgspec.json.decode(answer.body)["usage"]
        script = asking.body["vendor_script"]
        if usage["prompt_tokens"] != script["input_tokens"]:
            raise WrongAnswer(f"{asking} was answered with {usage}")


class WrongAnswer(Exception):
    """An answer that came whole and is another's, or says less than it must."""

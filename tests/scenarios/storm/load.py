"""Callers that go on whatever happens. Their own log says what was answered, and nothing else does.

Each call carries a nonce, which the vendor's log has in the body it saw: so an answer, what the
vendor billed for it and its record can be laid side by side.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import msgspec

from tests.scenarios.caller import CHAT, Answer, Caller
from tests.scenarios.caller import request as request_bytes
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import priced

PATIENCE_S = 30.0
LEAVING_SHARE = 0.02
OUTPUT_TOKENS_MAX = 30
_PAUSE_S = 0.05  # after a call that came to nothing
_UNTOLD_S = 3.0  # after its end a call may be known to nobody but its gateway
_NONCE = "nonce-"
_LIMITED = b'"finish_reason":"length"'


class Answered(NamedTuple):
    """A call whose last byte came."""

    call_id: str
    organization_id: str
    input_tokens: int
    output_tokens: int
    is_limited: bool = False  # its stream ended as at a limit, for no more could be held for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One call as it is made."""

    nonce: str
    body: dict[str, Any]
    leaves_s: float | None = None  # when the caller hangs up; None: it does not

    @classmethod
    def drawn(cls, chance: random.Random, nonce: str) -> "Asking":
        """Some cost more than is held for them, some are streams, some callers leave."""
        script = {
            "input_tokens": chance.randrange(1, 400),
            "output_tokens": chance.randrange(1, OUTPUT_TOKENS_MAX),
            "first_s": chance.choice([0.0, 0.01, 0.05]),
            "interval_s": 0.002,
        }
        asking = cls.of(nonce, script, is_stream=chance.random() < 0.5)
        leaves = chance.random() < LEAVING_SHARE
        return replace(asking, leaves_s=chance.uniform(0, 0.06) if leaves else None)

    @classmethod
    def of(cls, nonce: str, script: dict[str, Any], *, is_stream: bool) -> "Asking":
        """One that is answered by this script."""
        body = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": f"{_NONCE}{nonce}"}],
            "max_tokens": OUTPUT_TOKENS_MAX,
            "stream": is_stream,
            "vendor_script": script,
        }
        return cls(nonce=nonce, body=body)

    @property
    def held_tokens(self) -> int:
        """The input that is held for, by the size of the body."""
        return math.ceil(0.75 * len(msgspec.json.encode(self.body)))

    @property
    def worst(self) -> int:
        """What it can cost at most, nano-USD: a script may report more than is held for."""
        tokens = max(self.held_tokens, self.body["vendor_script"]["input_tokens"])
        return priced(tokens, OUTPUT_TOKENS_MAX)


@dataclass(slots=True)
class Made:
    """What a caller knows of a call. Times are of the machine's monotonic clock, in seconds."""

    asking: Asking
    key: Key
    port: int  # the caller's
    began_s: float
    ended_s: float = math.inf
    status: int = 0  # 0: no head of an answer came
    call_id: str = ""  # of a 200
    # When nobody but a worker that was killed or stopped could know of it.
    astray_s: list[tuple[float, float]] = field(default_factory=list)

    def is_astray(self, at_s: float) -> bool:
        """Whether what it holds or owes may be unknown then, without anybody's fault but ours."""
        return any(since_s <= at_s <= until_s for since_s, until_s in self.astray_s)


class Crowd(NamedTuple):
    """Callers who ask alike."""

    callers: int
    key: Callable[[], Key]  # for the next call
    draw: Callable[[random.Random, str], Asking]
    pause_s: float  # after a refusal


def nonce_in(body: str) -> str:
    """The nonce of a request that the vendor has seen."""
    return body.split(_NONCE, 1)[1].split('"', 1)[0]


class Load:
    """Many callers of many keys, until told to stop; `crowds` call beside them."""

    def __init__(
        self, tollgate: Deployment, keys: list[Key], seed: int, crowds: Sequence[Crowd] = ()
    ) -> None:
        self._tollgate, self._keys, self._seed, self._crowds = tollgate, keys, seed, crowds
        self._calls = 0
        self._stop = asyncio.Event()
        self.in_flight: set[int] = set()  # local ports of callers that wait for an answer
        self.made: dict[str, Made] = {}  # by nonce
        self.begun: Counter[str] = Counter()  # calls whose answer has begun and not ended, by key
        self.answered: dict[str, Answered] = {}  # by nonce
        self.refused: dict[int, int] = {}  # answers that were no 200, by status
        self.unanswered = 0  # cut, or the caller left

    @asynccontextmanager
    async def running(self, callers: int) -> AsyncIterator[None]:
        """Call meanwhile; at the end every caller ends its call and makes no more."""
        crowds = [
            Crowd(1, partial(_same, self._keys[number % len(self._keys)]), Asking.drawn, _PAUSE_S)
            for number in range(callers)
        ]
        crowds += [crowd for crowd in self._crowds for _ in range(crowd.callers)]
        async with asyncio.TaskGroup() as group:
            for number, crowd in enumerate(crowds):
                group.create_task(self._caller(number, crowd))
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

    def go_astray(self, ports: set[int], *, since_s: float, until_s: float) -> None:
        """The worker that serves these callers can tell nobody of their calls for so long."""
        for made in self.made.values():
            if made.port in ports and made.ended_s >= since_s - _UNTOLD_S:
                made.astray_s.append((since_s, until_s))

    async def _caller(self, number: int, crowd: Crowd) -> None:
        chance = random.Random(f"{self._seed}/{number}")  # noqa: S311 - a test that can be repeated
        while not self._stop.is_set():
            try:
                async with Caller.at("127.0.0.1", self._tollgate.ports.get("data", 0)) as line:
                    await self._calls_of(line, crowd, chance)
            except (OSError, EOFError):
                self.unanswered += 1
                await asyncio.sleep(_PAUSE_S)

    async def _calls_of(self, line: Caller, crowd: Crowd, chance: random.Random) -> None:
        while not self._stop.is_set():
            self._calls += 1
            asking = crowd.draw(chance, f"{self._seed}x{self._calls}")
            if not await self._call(line, crowd.key(), asking):
                await asyncio.sleep(crowd.pause_s)

    async def _call(self, line: Caller, key: Key, asking: Asking) -> bool:
        """One call, and whether it was let in; raises what `Caller` does when no whole answer
        comes, and `WrongAnswer`.
        """
        made = self.made[asking.nonce] = Made(asking, key, line.port, time.monotonic())
        self.in_flight.add(line.port)
        try:
            async with asyncio.timeout(asking.leaves_s or PATIENCE_S):
                await line.send(request_bytes(CHAT, key.secret, asking.body))
                head = await line.head()
                made.status = head.status
                if head.status == 200:
                    made.call_id = head.headers["x-request-id"]
                    self.begun[key.id] += 1
                answer = await line.rest(head)
        finally:
            self.in_flight.discard(line.port)
            made.ended_s = time.monotonic()
            self.begun[key.id] -= bool(made.call_id)
        if answer.status != 200:
            self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
            return False
        self._check(answer, asking)
        script = asking.body["vendor_script"]
        self.answered[asking.nonce] = Answered(
            answer.headers["x-request-id"],
            key.organization_id,
            script["input_tokens"],
            script["output_tokens"],
            # The vendor says it only of what has no room under max_tokens.
            is_limited=_LIMITED in answer.body and script["output_tokens"] < OUTPUT_TOKENS_MAX,
        )
        return True

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


def _same(key: Key) -> Key:
    return key


class WrongAnswer(Exception):
    """An answer that came whole and is another's, or says less than it must."""

"""Keys that can pay for few calls, and whether they were ever let have more than they had.

The vendor's log says when a call was under way and what it came to, so each call is judged at the
moment when the vendor saw it: by what was given until then, and what all calls before it cost.
Calls that only a killed or stopped worker knows of cannot be held for, so those do not count for a
while: late ends after a crash are the one exception of the promise that a storm brings about.
Nothing else is left out, and no word of the system's own decides what is.
"""

import asyncio
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

import asyncpg

from gateway.errors import GatewayError
from gateway.management import credits as credits_
from gateway.principal import Period
from ledger.money import Nanos, nanos
from ledger.postgres import AWAY
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import owed
from tests.scenarios.storm.load import OUTPUT_TOKENS_MAX, Asking, Crowd, Load, Made, nonce_in
from tests.vendor import Entry

CALL = Nanos(950_000)  # no call of these costs more, nor is more held for it
BEGINNING, MORE = 8, 3  # calls that a round begins with, and that a loss of data finds begun
PLACES = 2
CALLERS = 5  # of each: always more than there is money or room for
_UNUSED_TOKENS = 20  # of the input that is held for, at most
_RICH_USD = "100000"
_PAUSE_S = 0.2
_AGAIN_S = 0.1
_BEGUN_S_MAX = 0.5
_T = TypeVar("_T")

_LOST = """
    SELECT key_id::text AS key, extract(epoch FROM now() - admitted_at)::float8 AS ago_s, charge
    FROM usage_call WHERE key_id = ANY($1::uuid[]) AND kind = 'lost'
"""


class Given(NamedTuple):
    """Money that may be spent from then on."""

    at_s: float
    amount: int


class Seen(NamedTuple):
    """A call as the vendor saw it."""

    began_s: float
    ended_s: float
    cost: int
    made: Made


def slow(chance: random.Random, nonce: str) -> Asking:
    """A stream of a second or two that costs all that is held for it, or hardly less."""
    script = {
        "input_tokens": 100,
        "output_tokens": OUTPUT_TOKENS_MAX,
        "deltas": 4,
        "interval_s": round(chance.uniform(0.2, 0.5), 2),
    }
    asking = Asking.of(nonce, script, is_stream=True)
    script["input_tokens"] = asking.held_tokens - chance.randrange(_UNUSED_TOKENS)
    return asking


def overdrawn(given: Iterable[Given], calls: Sequence[Seen]) -> str:
    """The first call that was let in without money; "" if there is none."""
    given = list(given)
    for call in calls:
        had = sum(one.amount for one in given if one.at_s <= call.began_s)
        before = [one for one in calls if one.began_s <= call.began_s]
        spent = sum(one.cost for one in before)
        astray = sum(one.cost for one in before if one.made.is_astray(call.began_s))
        if had < spent - astray:
            return f"{call.made.call_id}: {had} were given, {spent} spent, of it {astray} astray"
    return ""


def crowded(places: int, calls: Sequence[Seen]) -> str:
    """The first call that was let in without a place; "" if there is none."""
    for call in calls:
        beside = [one for one in calls if one.began_s <= call.began_s < one.ended_s]
        count = sum(not one.made.is_astray(call.began_s) for one in beside)
        if count > places:
            return f"{call.made.call_id} is one of {count} at once"
    return ""


class Wallet:
    """A key whose wallet pays for few calls, round after round."""

    name, at_once = "wallet", MORE

    def __init__(self, key: Key, granted: int) -> None:
        self.key, self.granted = key, granted
        self.calls = 0
        self.answers: Counter[int] = Counter()  # by status
        self.given: dict[str, list[Given]] = {}  # in this round, by key
        self._began_s = 0.0

    def crowd(self) -> Crowd:
        """Its callers."""
        return Crowd(CALLERS, lambda: self.key, slow, _PAUSE_S)

    async def begin(self, tollgate: Deployment) -> None:
        """A round begins, and nothing is under way."""
        self._began_s = time.monotonic()
        had = await tollgate.wallet(self.key.organization_id)
        self.given = {self.key.id: [Given(-math.inf, had)]}
        await self.fill(tollgate, BEGINNING)

    async def fill(self, tollgate: Deployment, calls: int) -> None:
        """Give money for so many calls more, as soon as that can be done."""
        amount, once = Nanos(calls * CALL), str(uuid4())
        self.granted += amount
        self.given[self.key.id].append(Given(time.monotonic(), amount))
        grant = credits_.Grant(UUID(self.key.organization_id), amount, "more", "storm", once)

        async def give() -> None:
            async with tollgate.stores() as stores:
                await credits_.grant(stores.pool, stores.redis, grant)

        await _done(give)

    @property
    def refused(self) -> int:
        """How often it was not let in, for want of what is scarce."""
        return self.answers[402] + self.answers[429]

    async def until_begun(self, loads: Sequence[Load]) -> None:
        """Wait for as many calls as can be under way, so that a loss finds them open."""
        until_s = time.monotonic() + _BEGUN_S_MAX
        while sum(load.begun[self.key.id] for load in loads) < self.at_once:
            if time.monotonic() > until_s:
                return  # what was missing may have been used up by calls that ended
            await asyncio.sleep(0.005)

    async def judge(self, tollgate: Deployment, load: Load, seen: Iterable[Entry]) -> str:
        """The first call of the round that was let in and should not have been; "" if none."""
        calls = _calls(load, seen, self.given.keys())
        self.calls += sum(map(len, calls.values()))
        self.answers.update(one.status for one in load.made.values() if one.key.id in self.given)
        freed = await self._freed(tollgate)
        found = (
            self._wrong(calls[key], [*given, *freed[key]]) for key, given in self.given.items()
        )
        return next(filter(None, found), "")

    def _wrong(self, calls: list[Seen], given: list[Given]) -> str:
        return overdrawn(given, calls)

    async def _freed(self, tollgate: Deployment) -> dict[str, list[Given]]:
        """What calls that were lost left of their price, from their beginning on, by key."""
        found: dict[str, list[Given]] = defaultdict(list)
        connection = await tollgate.postgres()
        try:
            rows = await connection.fetch(_LOST, list(self.given))
        finally:
            await connection.close()
        for row in rows:
            at_s = time.monotonic() - row["ago_s"]
            if at_s >= self._began_s:
                found[row["key"]].append(Given(at_s, CALL - row["charge"]))
        return found


class Budget(Wallet):
    """Keys of a rich organization that may spend little; a new one is the next money."""

    name, at_once = "budget", MORE

    async def begin(self, tollgate: Deployment) -> None:
        """A round begins: with a new key."""
        self.given = {}
        await self.fill(tollgate, BEGINNING)

    async def fill(self, tollgate: Deployment, calls: int) -> None:
        """Callers go on with a new key for so many calls."""
        terms: dict[str, Any] = {"budget": calls * CALL, "period": Period.ONCE}
        owner = self.key.organization_id
        self.key = await _done(lambda: tollgate.new_key(organization_id=owner, **terms))
        self.given[self.key.id] = [Given(-math.inf, calls * CALL)]


class Places(Wallet):
    """A key of a rich organization that may have few calls under way at once."""

    name, at_once = "places", PLACES

    async def begin(self, tollgate: Deployment) -> None:  # noqa: ARG002 - as others begin
        """A round begins; there is nothing to give."""
        self.given = {self.key.id: []}

    async def fill(self, tollgate: Deployment, calls: int) -> None:
        """There is nothing to give."""

    def _wrong(self, calls: list[Seen], given: list[Given]) -> str:  # noqa: ARG002 - no money
        return crowded(PLACES, calls)


async def purses(tollgate: Deployment) -> list[Wallet]:
    """One of each kind: what is scarce is the wallet, a budget, or places."""
    rich = nanos(_RICH_USD)
    return [
        Wallet(await tollgate.new_key(credit_usd="0"), 0),
        Budget(await tollgate.new_key(credit_usd=_RICH_USD), rich),
        Places(await tollgate.new_key(credit_usd=_RICH_USD, concurrency=PLACES), rich),
    ]


async def use_up(every: Sequence[Wallet], tollgate: Deployment, loads: Sequence[Load]) -> None:
    """Give each a little, and see it held by calls that have begun: so a loss finds it held."""
    await asyncio.gather(*(purse.fill(tollgate, MORE) for purse in every))
    await asyncio.gather(*(purse.until_begun(loads) for purse in every))


def told(every: Iterable[Wallet]) -> str:
    """What came of them, for people."""
    return ", ".join(f"{one.name} {one.calls} calls, {one.refused} refused" for one in every)


async def _done(give: Callable[[], Coroutine[None, None, _T]]) -> _T:
    """Do it as soon as the stores are there."""
    while True:
        try:
            return await give()
        except (GatewayError, asyncpg.PostgresError, *AWAY):
            await asyncio.sleep(_AGAIN_S)


def _calls(load: Load, seen: Iterable[Entry], keys: Iterable[str]) -> dict[str, list[Seen]]:
    """The calls that the vendor saw of these keys, in the order of their beginning."""
    found: dict[str, list[Seen]] = {key: [] for key in keys}
    for entry in seen:
        made = load.made[nonce_in(entry.body)]
        if made.key.id in found:
            assert entry.ended_s is not None, "the vendor is not quiet"
            one = Seen(entry.started_s, entry.ended_s, owed([entry]), made)
            found[made.key.id].append(one)
    return {key: sorted(calls, key=lambda one: one.began_s) for key, calls in found.items()}

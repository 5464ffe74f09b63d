"""Nobody ever reads a byte of another's answer, however many leave in the middle of their own.

Every call carries a nonce of which its whole answer is made. Clients keep their connections, leave
at any byte, and the gateway's connections to the vendor are shared by all of them. Short form:
2,000 calls; LONG=1: 100,000.
"""

import asyncio
import random
import re
import time
from collections import Counter
from typing import Any

import pytest

from ledger.money import nanos
from tests.scenarios.caller import CHAT, RESPONSES, Caller, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_no_forgotten_sockets
from tests.scenarios.scale import LONG, SEED
from tests.scenarios.storm import books
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(3_600 if LONG else 180)]

CALLS = 100_000 if LONG else 2_000
ROUND = 5_000  # calls after which the books are compared
CALLERS = 40
LEAVING = 0.3  # of the calls
CREDIT_USD = "100000"
BYTES_MAX = 3_000  # of an answer: who leaves does so before that
_NONCE = re.compile(rb"<(\d+)>")


class Crowd:
    """Callers who look at every byte that they are given."""

    def __init__(self, tollgate: Deployment, keys: list[Key], number: int) -> None:
        self._tollgate, self._keys, self._number = tollgate, keys, number
        self._made = 0
        self.whole = self.partial = self.foreign = self.cut = 0
        self.statuses: Counter[int] = Counter()

    async def call(self, count: int) -> None:
        """So many calls by all of them."""
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._caller(number, count))

    async def _caller(self, number: int, count: int) -> None:
        chance = random.Random(f"{SEED}/{self._number}/{number}")  # noqa: S311 - can be repeated
        key = self._keys[number % len(self._keys)]
        while self._made < count:
            async with Caller.at("127.0.0.1", self._tollgate.ports["data"]) as line:
                try:
                    while self._made < count and await self._one(line, key, chance):
                        pass
                except (OSError, EOFError):
                    self.cut += 1

    async def _one(self, line: Caller, key: Key, chance: random.Random) -> bool:
        """One call; whether the connection can carry another."""
        self._made += 1
        nonce = b"%d" % (self._number * 10_000_000 + self._made)
        path, body = _drawn(chance, nonce.decode())
        await line.send(request(path, key.secret, body))
        if chance.random() < LEAVING:
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
            seen = await line.some(chance.choice((0, chance.randrange(BYTES_MAX))))
            self._look(seen, nonce)
            self.partial += 1
            return False
        answer = await line.answer()
        self.statuses[answer.status] += 1
        self._look(answer.body, nonce)
        if answer.status == 200:
            assert nonce in _NONCE.findall(answer.body), "an answer without its nonce"
            self.whole += 1
        return True

    def _look(self, seen: bytes, nonce: bytes) -> None:
        self.foreign += sum(found != nonce for found in _NONCE.findall(seen))


def _drawn(chance: random.Random, nonce: str) -> tuple[str, dict[str, Any]]:
    """A call whose answer says nothing but its nonce."""
    path = chance.choice((CHAT, CHAT, RESPONSES))
    script = {
        "text": f"<{nonce}>",
        "output_tokens": chance.randrange(1, 12),
        "interval_s": chance.choice((0.0, 0.002, 0.01)),
        "first_s": chance.choice((0.0, 0.0, 0.02)),
    }
    body: dict[str, Any] = {
        "model": chance.choice(("gpt-4o-mini", "cancel/gpt-4o-mini")),
        "stream": chance.random() < 0.7,
        "vendor_script": script,
    }
    if path == CHAT:
        return path, {**body, "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
    return path, {**body, "max_output_tokens": 20, "input": "hi"}


async def test_no_answer_has_a_byte_of_anothers_whoever_leaves_when(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    print(f"\ncross-talk: seed {SEED}")
    keys = [await tollgate.new_key(credit_usd=CREDIT_USD) for _ in range(4)]
    began_s = time.monotonic()
    whole = partial = cut = reused = seen = ended_early = 0
    statuses: Counter[int] = Counter()
    for number, start in enumerate(range(0, CALLS, ROUND), 1):
        await vendor_apart.forget()
        crowd = Crowd(tollgate, keys, number)
        await crowd.call(min(ROUND, CALLS - start))
        assert crowd.foreign == 0, f"{crowd.foreign} nonces of others were seen"
        entries = await vendor_apart.quiet()
        ended_s = asyncio.get_running_loop().time()
        await books.drained(tollgate, vendor_apart, healed_s=ended_s)
        whole, partial, cut = whole + crowd.whole, partial + crowd.partial, cut + crowd.cut
        statuses.update(crowd.statuses)
        seen += len(entries)
        ended_early += sum(entry.left_s is not None for entry in entries)
        reused += len(entries) - len({entry.connection for entry in entries})
    assert set(statuses) == {200}
    assert cut == 0, "a connection that nobody left was cut"
    await assert_no_forgotten_sockets(vendor_apart.port, tollgate.ports["data"])
    await _assert_charged(tollgate, keys)
    assert ended_early > partial // 20, "hardly anybody left in the middle"
    assert reused > whole // 2, "the connections to the vendor are hardly shared"
    print(
        f"T19 cross-talk, seed {SEED}: {whole + partial:,} calls, {partial:,} left at a random"
        f" byte; {seen:,} reached the vendor, {reused:,} on a connection used before,"
        f" {ended_early:,} cancelled in its middle;"
        f" 0 bytes of another's answer, 0 holds and 0 sockets left;"
        f" {time.monotonic() - began_s:.0f} s"
    )


async def _assert_charged(tollgate: Deployment, keys: list[Key]) -> None:
    """Each wallet is what its records say."""
    for key in keys:
        records = await tollgate.records(key.organization_id, count=1)
        charged = sum(record["charge"] for record in records)
        assert await tollgate.wallet(key.organization_id) == nanos(CREDIT_USD) - charged

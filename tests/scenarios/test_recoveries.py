"""How long a recovery takes, with live gateways, open calls and a backlog; and that it is exact.

Promised is p99. `LONG=1` judges it; the short form has too few for one, and judges their median.
"""

import asyncio
import random
import statistics
from pathlib import Path

import pytest

from ledger.admission import Held, Hold, Refused
from ledger.book import Organization
from ledger.money import Nanos
from ledger.record import encode
from ledger.recovery import Recovered
from tests.ledger.deployment import Deployment, deployed, new_call_id, record_of, until
from tests.ledger.gateways import Gateway
from tests.scenarios.scale import LONG

pytestmark = pytest.mark.scenario
ROUNDS = 240 if LONG else 32
BACKLOGS = (0, 100, 1_000, 0, 100, 1_000, 3_000, 10_000)
SEED = 20
HELD = 1_000
CREDIT = 10**12
PROMISE_S = 2.0


class Rounds:
    """What was charged, and how long it took."""

    def __init__(self, deployment: Deployment, acme: Organization) -> None:
        self.deployment, self.acme = deployment, acme
        self.charged = self.calls = 0
        self.recovered: list[Recovered] = []
        self._recovered_before = 0
        self.pauses_s: list[float] = []

    async def call(self, gateway: Gateway) -> Hold:
        """Admit a call and send it to its vendor."""
        acme, call_id = self.acme, new_call_id()
        ticket = encode(record_of(acme, call_id, charge=0))
        hold = Hold(call_id, acme.partition, acme.id, Nanos(HELD), ticket=ticket)
        assert isinstance(await gateway.conveyor.hold(hold, deadline_s=5.0), Held)
        gateway.dispatched(hold)
        return hold

    def end(self, gateway: Gateway, hold: Hold, charge: int) -> None:
        """Its vendor has answered."""
        gateway.ended(self.deployment.end(self.acme, hold.call_id, charge))
        self.charged, self.calls = self.charged + charge, self.calls + 1

    async def backlog(self, gateway: Gateway, count: int) -> None:
        """So many ends that Postgres does not have."""
        for start in range(0, count, 500):
            some = [self.call(gateway) for _ in range(min(500, count - start))]
            for hold in await asyncio.gather(*some):
                self.end(gateway, hold, 7)
        assert await gateway.conveyor.drain(10.0) == 0

    async def lose(self, *, is_all: bool) -> None:
        """Open the fence: with the data, streams and all, or with everything still there."""
        self._recovered_before = len(self.recovered)
        if is_all:
            await self.deployment.redis.flushall()
        else:
            key = f"tg:{{p{self.acme.partition:02d}}}:meta"
            await self.deployment.redis.hset(key, "seq", "5")

    async def recover(self, gateways: list[Gateway], open_calls: int) -> None:
        """Ask for all that is free and one more: nobody gets it before everything is held again."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        free = CREDIT - self.charged - open_calls * HELD
        too_much = Hold(
            new_call_id(), self.acme.partition, self.acme.id, Nanos(free + 1), ticket=b""
        )
        answer = await gateways[0].conveyor.hold(too_much, deadline_s=10.0)
        self.pauses_s.append(loop.time() - began_s)
        assert isinstance(answer, Refused), "admitted beyond the wallet"
        assert answer.free == free
        # And what ended calls owe, as far as their ends are not told yet.
        assert answer.held >= open_calls * HELD
        # Calls are admitted as soon as it is active; that is told a moment later.
        await until(self._has_recovered, within_s=10)
        # As a flusher tells, or the journals would send everything again for ever.
        at = await self.deployment.watermark(self.acme)
        for gateway in gateways:
            gateway.journal.proven(
                self.acme.partition, generation=at.generation, stream_id=at.stream_id
            )

    async def _has_recovered(self) -> bool:
        return len(self.recovered) > self._recovered_before


@pytest.mark.timeout(1_200)  # some 80,000 calls, in the long form 400,000
async def test_recoveries_are_fast_and_exact(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    seeded = random.Random(SEED)  # noqa: S311 - which gateway works, and no secret
    async with deployed(postgres_url, redis_url) as deployment:
        acme = await deployment.active(credit=CREDIT)
        rounds = Rounds(deployment, acme)
        deployment.recovery._on_recovered = lambda one: (
            rounds.recovered.append(one) if one.partition == acme.partition else None
        )
        async with asyncio.TaskGroup() as group:
            task = group.create_task(deployment.recovery.run(), name="recovery")
            notice = deployment.recovery.request
            async with (
                Gateway.alive(redis_url, tmp_path, on_epoch=notice) as one,
                Gateway.alive(redis_url, tmp_path, on_epoch=notice) as two,
            ):
                open_calls = [(gateway, await rounds.call(gateway)) for gateway in (one, two) * 50]
                for number in range(ROUNDS):
                    await rounds.backlog(seeded.choice((one, two)), BACKLOGS[number % 8])
                    await rounds.lose(is_all=number // 8 % 2 == 0)
                    await rounds.recover([one, two], len(open_calls))
                for gateway, hold in open_calls:
                    rounds.end(gateway, hold, 500)
                assert await one.conveyor.drain(10) == await two.conveyor.drain(10) == 0
            task.cancel()
        await deployment.flush(acme)
        assert await deployment.count("usage_record") == rounds.calls
        assert await deployment.balance(acme) == CREDIT - rounds.charged
        assert await deployment.free(acme) == CREDIT - rounds.charged
        assert await deployment.differences() == []

    took_s = sorted(one.seconds for one in rounds.recovered)
    p99_s = took_s[int(len(took_s) * 0.99)]
    judged = "p99" if LONG else "p50 only; LONG=1: p99"
    pauses_s = sorted(rounds.pauses_s)
    print(
        f"{len(took_s)} recoveries (seed {SEED}), two live gateways with {len(open_calls)} open"
        f" calls, backlog {sorted(set(BACKLOGS))}, {rounds.calls} calls:"
        f" p50 {statistics.median(took_s) * 1e3:.0f} ms, p99 {p99_s * 1e3:.0f} ms,"
        f" most {took_s[-1] * 1e3:.0f} ms; a call waited"
        f" p50 {statistics.median(pauses_s) * 1e3:.0f} ms, most {pauses_s[-1] * 1e3:.0f} ms;"
        " 0 admitted beyond the wallet, 0 lost, 0 doubled, no difference;"
        f" held against {PROMISE_S:.0f} s: {judged}"
    )
    assert len(took_s) >= ROUNDS
    # Of a few rounds p99 is the slowest, which other work on the machine decides.
    assert (p99_s if LONG else statistics.median(took_s)) <= PROMISE_S

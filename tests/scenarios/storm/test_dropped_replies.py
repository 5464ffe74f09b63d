"""Replies of Redis and Postgres that never come: whoever asked can't know, and nothing is wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.embedded import Embedded, Urls
from ledger.money import nanos
from tests.ledger.cutter import Cutter
from tests.scenarios.deployment import Deployment, shared
from tests.scenarios.scale import LONG, SEED
from tests.scenarios.storm import books
from tests.scenarios.storm.load import Load
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900 if LONG else 180)]

CALLS = 20_000 if LONG else 2_000
DROPPED = 0.05
SWALLOWED_PART = 0.1  # of the dropped ones: no end of the connection tells of them
CALLERS = 24
CREDIT_USD = "100000"


class Between:
    """Our own servers, and what stands between them and everybody else."""

    def __init__(self, urls: Urls, data: Path) -> None:
        self._urls = urls
        self.redis = Cutter(str(data / "valkey" / "valkey.sock"), seed=SEED)
        self.postgres = Cutter(str(data / "postgres" / ".s.PGSQL.5432"), seed=SEED + 1)

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator["Between"]:
        """Servers in `<folder>/data`, where a deployment's tests look for them."""
        async with AsyncExitStack() as stack:
            servers = await stack.enter_async_context(Embedded(folder / "data"))
            between = cls(servers.urls, folder / "data")
            await stack.enter_async_context(between.redis.listening(folder, "redis.sock"))
            await stack.enter_async_context(between.postgres.listening(folder, ".s.PGSQL.5432"))
            yield between

    def settings(self, folder: Path) -> dict[str, object]:
        """What leads a deployment through here."""
        valkey = str(folder / "data" / "valkey" / "valkey.sock")
        postgres = quote(str(folder / "data" / "postgres"), safe="")
        through = quote(str(folder / "redis.sock"))
        at = self._urls._replace(
            postgres=self._urls.postgres.replace(postgres, quote(str(folder), safe="")),
            redis=self._urls.redis.replace(valkey, through),
            redis_admin=self._urls.redis_admin.replace(valkey, through),
        )
        return {
            **shared(at),
            "ledger": {"partitions": 4, "hold_lease_s": 4, "hold_renew_s": 1},
        }

    def drop(self, share: float) -> None:
        """So many replies of each."""
        for cutter in (self.redis, self.postgres):
            cutter.cut_share = share * (1 - SWALLOWED_PART)
            cutter.swallow_share = share * SWALLOWED_PART
            cutter.delay_share = share


async def test_one_reply_in_twenty_dropped_leaves_every_amount_exact(
    folder: Path, vendor_apart: Vendor
) -> None:
    print(f"\ndropped replies: seed {SEED}")
    await vendor_apart.forget()
    async with (
        Between.started(folder) as between,
        Deployment.started(
            folder, vendor_port=vendor_apart.port, workers=2, changes=between.settings(folder)
        ) as tollgate,
    ):
        keys = [await tollgate.new_key(credit_usd=CREDIT_USD) for _ in range(4)]
        granted = {key.organization_id: nanos(CREDIT_USD) for key in keys}
        began_s = books.now_s()
        load = Load(tollgate, keys, SEED)
        async with load.running(CALLERS):
            await load.until(CALLERS, within_s=10)
            between.drop(DROPPED)
            await load.until(CALLS, within_s=800)
            between.drop(0)
            healed_s = asyncio.get_running_loop().time()

        sums = await books.settled(
            tollgate, vendor_apart, load, since_s=began_s, healed_s=healed_s, granted=granted
        )

    redis, postgres = between.redis, between.postgres
    assert redis.cuts + redis.swallows > 5
    assert postgres.cuts + postgres.swallows > 5
    print(
        f"dropped replies, seed {SEED}: {len(load.answered):,} answered, refused {load.refused},"
        f" {load.unanswered} cut; Redis {redis.cuts} cut, {redis.swallows} swallowed of"
        f" {redis.replies:,}; Postgres {postgres.cuts}, {postgres.swallows} of"
        f" {postgres.replies:,}; ends {dict(sums.kinds)}; drained in {sums.drained_s:.1f} s; exact"
    )

"""Observers are told what moved, and from time to time of everything; none misses any of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from gateway.management.watch import Sight, Watch
from ledger.moved import Moved, News
from tests.gateway.tenancy import until

ALL = Sight(None, None)


class Witness:
    """Keeps what it is shown, or fails."""

    def __init__(self) -> None:
        self.seen: list[Sight] = []
        self.fails = False

    async def look(self, sight: Sight) -> None:
        self.seen.append(sight)
        if self.fails:
            raise OSError("the store is away")

    @property
    def organizations(self) -> set[UUID]:
        return {one for sight in self.seen for one in sight.organizations or ()}


def news(*wallets: UUID, windows: tuple[str, ...] = ()) -> News:
    return News(frozenset(map(str, wallets)), frozenset(windows))


@asynccontextmanager
async def running(watch: Watch) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watch.run(), name="watch")
        yield
        task.cancel()


async def test_everything_is_looked_at_first_and_then_what_moved() -> None:
    moved, witness, acme, other = Moved(), Witness(), uuid4(), uuid4()
    async with running(Watch(moved, [witness], rest_s=0)):

        async def has_seen(*wanted: Sight) -> bool:
            return witness.seen == [*wanted]

        await until(lambda: has_seen(ALL))
        moved.note({str(acme)}, ())
        await until(lambda: has_seen(ALL, Sight([acme], [])))
        moved.note({str(other)}, {"key@0"})
        await until(lambda: has_seen(ALL, Sight([acme], []), Sight([other], ["key@0"])))


async def test_what_moves_between_two_looks_is_looked_at_together() -> None:
    moved, witness = Moved(), Witness()
    wallets = [uuid4() for _ in range(1_000)]
    watch = Watch(moved, [witness], rest_s=0.05)
    async with running(watch):

        async def has_begun() -> bool:
            return witness.seen == [ALL]

        await until(has_begun)
        for wallet in wallets:
            moved.note({str(wallet)}, ())
            await asyncio.sleep(0)

        async def has_seen_all() -> bool:
            return witness.organizations == set(wallets)

        await until(has_seen_all)
    assert watch.looks < 100


async def test_everything_is_looked_at_from_time_to_time() -> None:
    witness = Witness()
    async with running(Watch(Moved(), [witness], rest_s=0, scan_every_s=0.01)):

        async def has_scanned() -> bool:
            return witness.seen[:3] == [ALL, ALL, ALL]

        await until(has_scanned)


async def test_an_observer_that_failed_looks_at_everything_and_holds_up_no_other() -> None:
    first, second, acme = Witness(), Witness(), uuid4()
    watch = Watch(Moved(), [first, second])
    first.fails = True
    await watch.look(news(acme))
    first.fails = False
    await watch.look(news())
    await watch.look(news())
    assert first.seen == [Sight([acme], []), ALL]
    assert second.seen == [Sight([acme], [])]


async def test_a_wallet_that_is_nobodys_stops_nothing() -> None:
    witness = Witness()
    await Watch(Moved(), [witness]).look(News(frozenset({"forged"}), frozenset()))
    assert witness.seen == [ALL]

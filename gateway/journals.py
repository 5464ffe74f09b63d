"""What a worker does about journals: its own, and those that dead processes left behind.

An end is sent again whenever the stream that had it is no longer the partition's, until Postgres is
known to have it. Sending too often is harmless: the ledger recognises the call.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from redis.asyncio import Redis

from gateway.channel import hear
from ledger.admission import End
from ledger.adoption import AdoptedJournal, adopt
from ledger.conveyor import Conveyor
from ledger.drain import PROVEN_CHANNEL, read_proof
from ledger.frames import OpenCall
from ledger.journal import Journal
from ledger.money import ZERO, Nanos
from ledger.pricing import PriceSheet
from ledger.record import EndKind, Outcome, decode, encode
from ledger.step import Settled
from ledger.usage import Source, Usage

log = logging.getLogger(__name__)

ADOPT_EVERY_S = 2.0
_SLICE = 500  # ends sent at once; the event loop serves calls in between


class Journals:
    """Joins the journals to the conveyor and to what Postgres proves."""

    def __init__(
        self, own: Journal, directory: Path, *, prices: Callable[[], PriceSheet | None]
    ) -> None:
        self._own, self._directory, self._prices = own, directory, prices
        self._adopted: dict[str, AdoptedJournal] = {}
        self._awaited: dict[bytes, asyncio.Future[None]] = {}
        self._conveyor: Conveyor

    def attach(self, conveyor: Conveyor) -> None:
        """Send ends through this one."""
        self._conveyor = conveyor

    def on_settled(self, settled: Settled) -> None:
        """A stream has these ends."""
        call_ids = [end.call_id for end in settled.ends]
        if self._awaited:
            self._wake(call_ids)
        for journal in self._all():
            journal.appended(
                call_ids,
                settled.partition,
                generation=settled.generation,
                stream_id=settled.stream_id,
            )

    def _wake(self, call_ids: list[bytes]) -> None:
        """Tell those who wait for one of these ends."""
        for call_id in call_ids:
            awaited = self._awaited.get(call_id)
            if awaited is not None and not awaited.done():
                awaited.set_result(None)

    def placed(self, call_id: bytes) -> "asyncio.Future[None]":
        """Done once some stream has the call's end. Cancel it when nobody waits any more."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited[call_id] = future
        future.add_done_callback(lambda _: self._awaited.pop(call_id, None))
        return future

    def on_generation(self, partition: int, generation: int) -> None:
        """The partition has a new stream: what only older ones had is sent again."""
        for journal in self._all():
            for end in journal.unproven(partition, generation=generation):
                self._conveyor.settle(end)
        for adopted in self._adopted.values():
            self._end_lost(adopted, partition)

    async def hear_proofs(self, redis: Redis) -> None:
        """Learn from the flusher how far Postgres is; for ever."""
        await hear(redis, PROVEN_CHANNEL, self._prove)

    def _prove(self, message: bytes) -> None:
        for partition, at in read_proof(message).items():
            for journal in self._all():
                journal.proven(partition, generation=at.generation, stream_id=at.stream_id)

    async def adopt_orphans(self) -> None:
        """Take over journals of dead processes, until each is proven and gone; for ever."""
        while True:
            if self._prices() is not None and self._conveyor.is_connected:
                for journal in await asyncio.to_thread(lambda: list(adopt(self._directory))):
                    await self._take_over(journal)
            for name, journal in list(self._adopted.items()):
                if await asyncio.to_thread(journal.retire):
                    del self._adopted[name]
                    log.info("journal retired", extra={"journal": name})
            await asyncio.sleep(ADOPT_EVERY_S)

    def release(self) -> None:
        """Leave the adopted journals to others."""
        for journal in self._adopted.values():
            journal.release()
        self._adopted.clear()

    @property
    def unproven_count(self) -> int:
        """Ends that Postgres is not known to have, in all journals held here."""
        adopted = sum(journal.unproven_count for journal in self._adopted.values())
        return self._own.unproven_count + adopted

    def _all(self) -> list[Journal | AdoptedJournal]:
        return [self._own, *self._adopted.values()]

    async def _take_over(self, journal: AdoptedJournal) -> None:
        log.warning(
            "journal adopted",
            extra={
                "journal": journal.name,
                "unproven": journal.unproven_count,
                "damaged": journal.damaged,
            },
        )
        self._adopted[journal.name] = journal
        for count, end in enumerate(await asyncio.to_thread(lambda: list(journal.ends()))):
            self._conveyor.settle(end)
            if count % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        self._end_lost(journal, None)

    def _end_lost(self, journal: AdoptedJournal, partition: int | None) -> None:
        """End the calls that died with their gateway; `partition` None: of every partition."""
        prices = self._prices()
        assert prices is not None, "journals are adopted once there are prices"
        for call in journal.open_calls():
            if partition is None or call.partition == partition:
                self._conveyor.settle(lost_end(call, prices))


def lost_end(call: OpenCall, prices: PriceSheet) -> End:
    """The end of a call whose gateway died with it: its estimated input is charged, flagged.

    The vendor had the request and charges at least for that; how much it generated, nobody knows.
    """
    record = decode(call.ticket)
    price = prices.price(record.provider, record.model_target, record.admitted_us / 1e6)
    usage = Usage(record.usage, source=Source.ESTIMATED)
    charge = ZERO if price is None else Nanos(min(price.charge(usage), call.held))
    record.kind, record.outcome = EndKind.LOST, Outcome.UNKNOWN
    record.charge = record.list_price = charge
    record.usage_source = Source.ESTIMATED
    record.price_version = "" if price is None else price.version
    return call.lost(charge)._replace(record=encode(record))

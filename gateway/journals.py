"""What a worker does about journals: its own, and those that dead processes left behind.

An end is sent again whenever the stream that had it is no longer the partition's, until Postgres is
known to have it. Sending too often is harmless: the ledger recognises the call.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.channel import hear
from ledger.admission import End
from ledger.adoption import AdoptedJournal, adopt
from ledger.conveyor import Conveyor
from ledger.drain import PROVEN_CHANNEL, read_proof
from ledger.frames import OpenCall
from ledger.functions import Partition
from ledger.journal import Journal
from ledger.money import ZERO, Nanos
from ledger.pricing import PriceSheet
from ledger.record import EndKind, Outcome, decode, encode
from ledger.step import Settled
from ledger.usage import Source, Usage

log = logging.getLogger(__name__)

ADOPT_EVERY_S = 2.0
AGAIN_S = 0.1  # after a journal that could not be read
PROOF_S = 0.2
_SLICE = 500  # ends sent at once; the event loop serves calls in between


class Journals:
    """Joins the journals to the conveyor and to what Postgres proves."""

    def __init__(
        self, own: Journal, directory: Path, *, prices: Callable[[], PriceSheet | None]
    ) -> None:
        self._own, self._directory, self._prices = own, directory, prices
        self._adopted: dict[str, AdoptedJournal] = {}
        self._awaited: dict[bytes, asyncio.Future[None]] = {}
        self._renewed: dict[int, int] = {}  # partition -> its generation, not handed over yet
        self._has_renewed = asyncio.Event()
        self._conveyor: Conveyor

    @property
    def needs_replica(self) -> bool:
        """Whether an end counts only once Redis and a replica of it have it on their disks."""
        return self._conveyor.needs_replica

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
        """The partition has a new stream: what only older ones had is told again by `retell`."""
        self._renewed[partition] = generation
        self._has_renewed.set()

    async def retell(self, redis: Redis) -> None:
        """Hand over what new streams do not have; for ever.

        One reading serves every partition that is in a new generation by then. What cannot be
        handed over is not signed for at the roll call, and tried again.
        """
        while True:
            await self._has_renewed.wait()
            self._has_renewed.clear()
            generations, self._renewed = self._renewed, {}
            try:
                for partition in generations:
                    await self._prove_again(redis, partition)
                ends = await self._missing(generations)
            except OSError:
                log.exception("journal not read")
                self._renewed = generations | self._renewed
                self._has_renewed.set()
                await asyncio.sleep(AGAIN_S)
                continue
            for partition, generation in generations.items():
                self._conveyor.told(partition, generation, ends[partition])

    async def _prove_again(self, redis: Redis, partition: int) -> None:
        """Learn how far Postgres had the older streams. The news of it may be on its way yet, and
        what it proves would be told again: recognised, but as so many corrections.
        """
        try:
            async with asyncio.timeout(PROOF_S):
                proven = await Partition(redis, partition).proven_before()
        except (RedisError, OSError):
            return  # then the news decides
        if proven is not None:
            for journal in self._all():
                journal.proven(partition, generation=proven[0], stream_id=proven[1])

    async def _missing(self, generations: Mapping[int, int]) -> dict[int, list[End]]:
        """By partition, the ends that its stream of this generation does not have."""
        missing: dict[int, list[End]] = {partition: [] for partition in generations}
        for journal in self._all():
            for ends in journal.unproven(generations):
                for end in ends:
                    missing[end.partition].append(end)
                await asyncio.sleep(0)  # a span took about a millisecond: calls are served between
        for adopted in self._adopted.values():
            for end in self._lost(adopted):
                if end.partition in missing:
                    missing[end.partition].append(end)
        return missing

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
                if journal.is_proven:
                    # First: a release meanwhile would give others a journal that is half gone.
                    del self._adopted[name]
                    await asyncio.to_thread(journal.remove)
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
        for end in self._lost(journal):
            self._conveyor.settle(end)

    def _lost(self, journal: AdoptedJournal) -> list[End]:
        """The ends of the calls that died with their gateway."""
        prices = self._prices()
        assert prices is not None, "journals are adopted once there are prices"
        return [lost_end(call, prices) for call in journal.open_calls()]


def lost_end(call: OpenCall, prices: PriceSheet) -> End:
    """The end of a call whose gateway died with it: what it told last is charged, flagged.

    One that told nothing is charged its estimated input: the vendor had the request and charges at
    least for that; how much it generated, nobody knows.
    """
    record = decode(call.ticket)
    if record.usage_source == Source.ESTIMATED:
        return call.lost(Nanos(min(record.charge, call.held)))
    price = prices.price(record.provider, record.model_target, record.admitted_us / 1e6)
    usage = Usage(record.usage, source=Source.ESTIMATED)
    charge = ZERO if price is None else Nanos(min(price.charge(usage), call.held))
    record.kind, record.outcome = EndKind.LOST, Outcome.UNKNOWN
    record.charge = record.list_price = charge
    record.usage_source = Source.ESTIMATED
    record.price_version = "" if price is None else price.version
    return call.lost(charge)._replace(record=encode(record))

"""What a worker does about journals: its own, and those that dead processes left behind.

An end is sent again whenever the stream that had it is no longer the partition's, until Postgres is
known to have it. Sending too often is harmless: the ledger recognises the call.

However long Postgres or Redis were away, what is told again is never all in memory. Journals are
read twice: once for what the ends charge, of which sums are kept, and once to hand them over, while
few ends in the conveyor are unanswered. Orphans are adopted one after another.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.channel import hear
from ledger.admission import End
from ledger.adoption import AdoptedJournal, adopt
from ledger.cancelled import raise_if_cancelled
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
UNANSWERED_MAX = 20_000  # ends in the conveyor with which no more are read from journals: 30 MiB

UNREADABLE = (OSError, msgspec.MsgspecError)
AnyJournal = Journal | AdoptedJournal


class Journals:
    """Joins the journals to the conveyor and to what Postgres proves."""

    def __init__(
        self,
        own: Journal,
        directory: Path,
        *,
        prices: Callable[[], PriceSheet | None],
        unanswered_max: int = UNANSWERED_MAX,
    ) -> None:
        self._own, self._directory, self._prices = own, directory, prices
        self._unanswered_max = unanswered_max
        self._adopted: dict[str, AdoptedJournal] = {}
        self._unreadable: set[str] = set()  # by their names: left to the next start
        self._awaited: dict[bytes, asyncio.Future[None]] = {}
        self._renewed: dict[int, int] = {}  # partition -> its generation, nothing is told of yet
        self._has_renewed = asyncio.Event()
        # Of each journal the partitions, with their generations, whose ends are to be told again.
        self._again: dict[AnyJournal, dict[int, int]] = {}
        self._untold: dict[int, int] = {}  # the partitions of which that is not done
        self._fresh: AdoptedJournal | None = None  # of which nothing was told before
        self._has_due, self._has_told = asyncio.Event(), asyncio.Event()
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
        """Find out what new streams do not have, and tell what it charges; for ever.

        One reading serves every partition that is in a new generation by then. What cannot be
        read is not signed for at the roll call, and tried again.
        """
        while True:
            await self._has_renewed.wait()
            self._has_renewed.clear()
            generations, self._renewed = self._renewed, {}
            try:
                for partition in generations:
                    await self._prove_again(redis, partition)
                await self._owe(generations)
            except UNREADABLE:
                raise_if_cancelled()
                log.exception("journal not read")
                self._renewed = generations | self._renewed
                self._has_renewed.set()
                await asyncio.sleep(AGAIN_S)

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

    async def _owe(self, generations: Mapping[int, int]) -> None:
        """Tell what the ends charge that these generations' streams do not have."""
        asked = [self._conveyor.owing(*one) for one in generations.items()]
        owings = {owing.partition: owing for owing in asked if owing is not None}
        current = {partition: owing.generation for partition, owing in owings.items()}
        journals = self._all()
        for journal in journals:
            try:
                for ends in journal.unproven(current):
                    for end in ends:
                        owings[end.partition].add(end)
                    await asyncio.sleep(0)  # a span took about a millisecond: calls are served
                for end in self._lost(journal):
                    if end.partition in owings:
                        owings[end.partition].add(end)
            except UNREADABLE as error:
                if isinstance(journal, Journal):
                    raise
                self._give_up(journal, error)
        for owing in owings.values():
            self._conveyor.owed(owing)
        for journal in journals:
            self._tell_again(journal, self._again.get(journal, {}) | current)
        self._untold |= current
        self._has_due.set()

    def _tell_again(self, journal: AnyJournal, generations: dict[int, int]) -> None:
        if journal in self._all():  # else it was retired meanwhile
            self._again[journal] = generations

    async def hand_over(self) -> None:
        """Give the conveyor what no stream has, as fast as that is answered; for ever."""
        while True:
            await self._has_due.wait()
            self._has_due.clear()
            journals = self._all()
            read = [await self._hand_over(journal) for journal in journals]
            for partition, generation in list(self._untold.items()):
                if not any(partition in again for again in self._again.values()):
                    del self._untold[partition]
                    self._conveyor.all_late(partition, generation)
            if not all(read):
                self._has_due.set()
                await asyncio.sleep(AGAIN_S)

    async def _hand_over(self, journal: AnyJournal) -> bool:
        """One reading of one journal; False if it failed.

        What the stream of a newer generation lacks meanwhile is left to the next reading.
        """
        again = self._again.pop(journal, {})
        is_fresh = journal is self._fresh
        if not again and not is_fresh:
            return True
        try:
            for ends in journal.unsent():
                for end in ends:
                    await self._hand(journal, end, again, is_fresh=is_fresh)
                await asyncio.sleep(0)
            for end in self._lost(journal):
                await self._hand(journal, end, again, is_fresh=is_fresh)
        except UNREADABLE as error:
            if isinstance(journal, AdoptedJournal):
                self._give_up(journal, error)
                return True
            log.exception("journal not read")
            self._tell_again(journal, again | self._again.get(journal, {}))
            return False
        self._told_first(journal)
        return True

    def _told_first(self, journal: AnyJournal) -> None:
        """All of this one was told, or needs not be: the next may be adopted."""
        if journal is self._fresh:
            self._fresh = None
            self._has_told.set()

    async def _hand(
        self, journal: AnyJournal, end: End, again: Mapping[int, int], *, is_fresh: bool
    ) -> None:
        if end.partition not in again and not is_fresh:
            return
        await self._conveyor.room(self._unanswered_max)
        if end.partition in self._again.get(journal, {}):
            return
        if end.partition in again:
            self._conveyor.late(end, again[end.partition])
        else:
            self._conveyor.settle(end)

    async def hear_proofs(self, redis: Redis) -> None:
        """Learn from the flusher how far Postgres is; for ever."""
        await hear(redis, PROVEN_CHANNEL, self._prove)

    def _prove(self, message: bytes) -> None:
        for partition, at in read_proof(message).items():
            for journal in self._all():
                journal.proven(partition, generation=at.generation, stream_id=at.stream_id)

    async def adopt_orphans(self) -> None:
        """Take over journals of dead processes, until each is proven and gone; for ever.

        The next one is taken when the one before was handed over.
        """
        while True:
            if self._fresh is None and self._prices() is not None and self._conveyor.is_connected:
                journal = await asyncio.to_thread(self._next_orphan)
                if journal is not None:
                    self._take_over(journal)
            for name, journal in list(self._adopted.items()):
                if journal.is_proven:
                    # First: a release meanwhile would give others a journal that is half gone.
                    del self._adopted[name]
                    self._again.pop(journal, None)
                    self._told_first(journal)
                    await self._retire(journal)
            with suppress(TimeoutError):
                async with asyncio.timeout(ADOPT_EVERY_S):
                    await self._has_told.wait()
            self._has_told.clear()

    def _next_orphan(self) -> AdoptedJournal | None:
        orphans = adopt(self._directory, apart=self._unreadable, on_unreadable=self._leave_alone)
        return next(orphans, None)

    def _leave_alone(self, name: str, error: Exception) -> None:
        self._unreadable.add(name)
        said = {"journal": name, "reason": str(error), "cause": name}
        log.error("journal cannot be read, until the next start", extra=said)

    def _give_up(self, journal: AdoptedJournal, error: Exception) -> None:
        """Leave it to the next start; both readings may find out."""
        if self._adopted.pop(journal.name, None) is not None:
            self._again.pop(journal, None)
            self._leave_alone(journal.name, error)
            journal.release()
            self._told_first(journal)

    async def _retire(self, journal: AdoptedJournal) -> None:
        try:
            await asyncio.to_thread(journal.remove)
        except OSError as error:  # all of it is in Postgres; it only takes room
            said = {"journal": journal.name, "reason": str(error), "cause": journal.name}
            log.error("journal not deleted", extra=said)  # noqa: TRY400 - the reason says it all
        else:
            log.info("journal retired", extra={"journal": journal.name})

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

    def _all(self) -> list[AnyJournal]:
        return [self._own, *self._adopted.values()]

    def _take_over(self, journal: AdoptedJournal) -> None:
        log.warning(
            "journal adopted",
            extra={
                "journal": journal.name,
                "unproven": journal.unproven_count,
                "damaged": journal.damaged,
            },
        )
        self._adopted[journal.name] = self._fresh = journal
        self._has_due.set()

    def _lost(self, journal: AnyJournal) -> Iterator[End]:
        """The ends of the calls that died with their gateway."""
        if isinstance(journal, AdoptedJournal):
            prices = self._prices()
            assert prices is not None, "journals are adopted once there are prices"
            for call in journal.open_calls():
                yield lost_end(call, prices)


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

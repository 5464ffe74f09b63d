"""Gateways as a recovery meets them: a conveyor, a heartbeat, a journal, and ears."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from gateway.channel import hear
from gateway.journals import Journals
from ledger.admission import End, Hold
from ledger.conveyor import Conveyor
from ledger.frames import OpenCall
from ledger.journal import Journal
from ledger.rollcall import GENERATION_CHANNEL, Presence, read_call


class Gateway:
    """One process's worth. It stops beating when `presence` is cancelled, as the dead do."""

    def __init__(self, url: str, folder: Path, *, on_epoch: Callable[[int], None]) -> None:
        self.name = f"gateway-{secrets.token_hex(4)}"
        self.redis = Redis.from_url(url)
        self.presence = Presence(self.redis, self.name)
        self.journal = Journal.create(folder, worker=self.name)
        self.journals = Journals(self.journal, folder, prices=lambda: None)
        self.conveyor = Conveyor(
            url,
            partitions=16,
            gateway=self.name,
            on_epoch=on_epoch,
            on_settled=self.journals.on_settled,
            on_generation=self.journals.on_generation,
        )
        self.journals.attach(self.conveyor)
        self.beating: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def alive(
        cls, url: str, folder: Path, *, on_epoch: Callable[[int], None]
    ) -> AsyncIterator["Gateway"]:
        gateway = cls(url, folder, on_epoch=on_epoch)
        try:
            async with asyncio.TaskGroup() as group:
                gateway.beating = group.create_task(gateway.presence.run(), name="presence")
                await gateway.presence.known.wait()
                tasks = [
                    gateway.beating,
                    group.create_task(gateway.conveyor.run(), name="conveyor"),
                    group.create_task(gateway._hear(), name="generations"),
                    group.create_task(gateway.journals.hear_proofs(gateway.redis), name="proofs"),
                    group.create_task(gateway.journals.retell(gateway.redis), name="retell"),
                    group.create_task(gateway.journals.hand_over(), name="hand over"),
                ]
                yield gateway
                for task in tasks:
                    task.cancel()
            await gateway.presence.leave()
        finally:
            gateway.journal.close()
            await gateway.redis.aclose()

    def dispatched(self, hold: Hold) -> None:
        """Its call goes to a vendor."""
        self.journal.dispatched(OpenCall.of(hold))

    def ended(self, end: End) -> None:
        """A call of it is over."""
        self.journal.finished(end)
        self.conveyor.settle(end)

    async def _hear(self) -> None:
        await hear(
            self.redis, GENERATION_CHANNEL, lambda said: self.conveyor.look(read_call(said)[0])
        )

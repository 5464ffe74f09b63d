"""An organization that spends: real calls in Redis, flushed to Postgres, and who watches them.

till = await opened_till(office, postgres_url, team.id)
async with till.watched(LowBalances(office.desk)):
    await till.gives(20 * USD)
    await till.calls(200, USD // 20)
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

from gateway.management import credits as money
from gateway.management.credits import Grant
from gateway.management.watch import Observer, Watch
from ledger.admission import Cap
from ledger.book import Organization
from ledger.flusher import Flusher
from ledger.money import NANOS_PER_USD, Nanos
from ledger.moved import News
from tests.gateway.management.office import Office
from tests.gateway.tenancy import Tenancy, activate, until
from tests.ledger.deployment import Deployment

USD = NANOS_PER_USD
_AT_ONCE = 20  # connections to Redis; all calls are open together
_ORGANIZATION = """
    SELECT o.id, o.name, o.kind, o.partition, p.id AS project_id
    FROM organization AS o JOIN project AS p ON p.organization_id = o.id AND p.is_default
    WHERE o.id = $1
"""


class Till:
    """One organization's money."""

    def __init__(self, office: Office, deployment: Deployment, organization: Organization) -> None:
        self.office, self.deployment, self.organization = office, deployment, organization

    async def gives(self, amount: int) -> None:
        """The operator grants it credits."""
        grant = Grant(UUID(self.organization.id), Nanos(amount), "welcome", "root@example.com")
        await money.grant(self.office.pool, self.office.redis, grant)

    async def calls(self, count: int, charge: int, caps: Sequence[Cap] = ()) -> None:
        """So many calls that are open at once and end together, each at this price."""
        amount, spent, turn = max(1, charge), tuple(caps), asyncio.Semaphore(_AT_ONCE)
        organization, held = self.organization, []

        async def hold() -> None:
            async with turn:
                held.append(await self.deployment.hold(organization, amount, spent))

        async def settle(call_id: bytes) -> None:
            async with turn:
                ended = await self.deployment.settle(organization, call_id, charge, spent)
            assert ended == "settled"

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(hold(), name=f"hold {number}")
        async with asyncio.TaskGroup() as group:
            for call_id in held:
                group.create_task(settle(call_id), name=f"settle {call_id.hex()}")

    async def booked(self) -> None:
        """Everything is in Postgres."""
        await self.deployment.flush(self.organization)

    @asynccontextmanager
    async def watched(self, *observers: Observer, processes: int = 1) -> AsyncIterator[None]:
        """So many control processes flush and watch; at the end all have seen all."""
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            watches = []
            for number in range(processes):
                flusher = Flusher(
                    self.deployment.url,
                    self.office.redis,
                    partitions=range(16),
                    clock=time.time,  # noqa: TID251 - a test is its own root
                    on_epoch=lambda _: None,
                )
                watch = Watch(flusher.moved, observers, rest_s=0.01)
                tasks = [
                    group.create_task(flusher.run(), name=f"flusher {number}"),
                    group.create_task(watch.run(), name=f"watch {number}"),
                ]
                for task in tasks:
                    stack.callback(task.cancel)
                watches.append(watch)
            yield
            await self.booked()
            for watch in watches:
                await watch.look(News(frozenset({self.organization.id}), frozenset()))

    async def balance(self) -> int:
        """As Postgres has it."""
        return await self.deployment.balance(self.organization)

    async def spends_to(self, balance: int) -> None:
        """One call that leaves so much, booked."""
        await self.calls(1, await self.balance() - balance)

        async def is_booked() -> bool:
            return await self.balance() == balance

        await until(is_booked)


async def opened_till(office: Office, postgres_url: str, organization_id: str) -> Till:
    """The organization's, with all partitions active."""
    await activate(Tenancy(office.pool, office.redis))
    row = await office.pool.fetchrow(_ORGANIZATION, UUID(organization_id))
    assert row is not None
    organization = Organization(
        str(row["id"]), row["name"], row["kind"], row["partition"], str(row["project_id"]), Nanos(0)
    )
    return Till(office, Deployment(postgres_url, office.pool, office.redis), organization)

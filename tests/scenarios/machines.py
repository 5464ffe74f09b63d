"""Several deployments of one database and one Redis, as on many machines, and their load."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from gateway.embedded import Embedded
from ledger.money import nanos
from ledger.stream import admitted_ms
from tests.scenarios.deployment import Deployment, Key, shared
from tests.scenarios.storm import books, scarce
from tests.scenarios.storm.load import Answered, Load
from tests.vendor import Vendor

CREDIT_USD = "100000"
CALLERS = 12  # of each deployment
_LEDGER: dict[str, Any] = {
    "partitions": 6,
    "hold_lease_s": 4,  # so that what nobody ends is swept within the time to drain
    "hold_renew_s": 1,
    "audit_interval_s": 2,
}


class Machines:
    """Deployments that know nothing of each other, and what their callers got."""

    def __init__(
        self,
        deployments: list[Deployment],
        keys: list[Key],
        purses: list[scarce.Wallet],
        vendor: Vendor,
    ) -> None:
        self.deployments, self._keys, self._vendor = deployments, keys, vendor
        self._purses = purses
        crowds = [purse.crowd() for purse in purses]
        self.loads = [Load(one, keys, number, crowds) for number, one in enumerate(deployments)]
        self._began_s = books.now_s()
        self._healed_s = 0.0  # when the last callers were told to end, by the loop's clock

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        folder: Path,
        vendor: Vendor,
        *,
        redis_url: str,
        count: int = 2,
        ledger: Mapping[str, Any] | None = None,
    ) -> AsyncIterator["Machines"]:
        """So many of one worker each, with keys of organizations in every partition. `ledger`:
        changes of its settings.
        """
        await vendor.forget()
        async with AsyncExitStack() as stack:
            stores = await stack.enter_async_context(Embedded(folder / "stores"))
            settings = {
                **shared(stores.urls, redis={"url": redis_url}),
                "ledger": {**_LEDGER, **(ledger or {})},
            }
            started = [
                Deployment.started(
                    _made(folder / f"gateway-{number}"), vendor_port=vendor.port, changes=settings
                )
                for number in range(count)
            ]
            deployments = await asyncio.gather(*(stack.enter_async_context(one) for one in started))
            keys = [await deployments[0].new_key(credit_usd=CREDIT_USD) for _ in range(12)]
            purses = await scarce.purses(deployments[0])
            yield cls([*deployments], keys, purses, vendor)

    @asynccontextmanager
    async def loaded(self) -> AsyncIterator[None]:
        """Callers at every deployment, meanwhile."""
        for purse in self._purses:
            await purse.begin(self.deployments[0])
        async with AsyncExitStack() as stack:
            for load in self.loads:
                await stack.enter_async_context(load.running(CALLERS))
            await self.answers(CALLERS)
            yield
            self._healed_s = asyncio.get_running_loop().time()

    async def use_up(self) -> None:
        """What is scarce is used up by calls under way: so a loss now finds it held."""
        await scarce.use_up(self._purses, self.deployments[0], self.loads)

    def forget_calls_of(self, number: int) -> None:
        """This deployment and its disk are gone: nobody can tell of the calls that it serves."""
        load = self.loads[number]
        ports = {made.port for made in load.made.values()}
        load.go_astray(ports, since_s=time.monotonic(), until_s=math.inf)

    async def answers(self, count: int, *, within_s: float = 20.0) -> None:
        """Wait for so many more answers of each."""
        try:
            await asyncio.gather(*(load.until(count, within_s=within_s) for load in self.loads))
        except TimeoutError as error:
            told = [one.log_path.read_text(errors="replace")[-3_000:] for one in self.deployments]
            raise AssertionError("nobody is answered: " + "\n".join(told)) from error

    async def everybody_answers(self, *, within_s: float = 20.0) -> None:
        """Wait until every deployment has answered callers of every organization anew.

        Only calls count that are admitted from now on, which their ids tell.
        """
        since_ms = time.time_ns() // 1_000_000
        before = [len(load.answered) for load in self.loads]
        wanted = {key.organization_id for key in self._keys}
        async with asyncio.timeout(within_s):
            while not all(
                wanted
                <= {
                    call.organization_id
                    for call in [*load.answered.values()][seen:]
                    if admitted_ms(UUID(call.call_id).bytes) >= since_ms
                }
                for load, seen in zip(self.loads, before, strict=True)
            ):
                await asyncio.sleep(0.05)

    @property
    def answered(self) -> dict[str, Answered]:
        """Everything that any caller got."""
        return {nonce: call for load in self.loads for nonce, call in load.answered.items()}

    @property
    def refused(self) -> dict[int, int]:
        """Answers that were no 200, by status."""
        found: dict[int, int] = {}
        for load in self.loads:
            for status, count in load.refused.items():
                found[status] = found.get(status, 0) + count
        return found

    async def _assert_examined(self) -> None:
        """The doctor gets to its last check, and has nothing to say of the ledger."""
        done = await asyncio.to_thread(self.deployments[0]._command, "doctor", "--json")
        grades = {one["check"]: one["grade"] for one in json.loads(done.stdout)}
        assert {grades[check] for check in ("holds", "wallets", "books", "journals")} == {"ok"}, (
            done.stdout
        )

    async def assert_exact(self, *, is_disk_lost: bool = False) -> str:
        """Drain, then compare callers, vendor, records and wallets; what it came to."""
        everything = self.loads[0]
        everything.answered.update(self.answered)
        for load in self.loads:
            everything.made.update(load.made)
        sums = await books.settled(
            self.deployments[0],
            self._vendor,
            everything,
            since_s=self._began_s,
            healed_s=self._healed_s,
            granted={key.organization_id: nanos(CREDIT_USD) for key in self._keys}
            | {purse.key.organization_id: purse.granted for purse in self._purses},
            is_disk_lost=is_disk_lost,
            beside=self.deployments[1:],
        )
        seen = await self._vendor.log()
        for purse in self._purses:
            wrong = await purse.judge(self.deployments[0], everything, seen)
            assert not wrong, f"{purse.name}: {wrong}"
            assert purse.refused > 0, f"{purse.name}: nobody was refused for want of it"
        connection = await self.deployments[0].postgres()
        try:
            recoveries, middle_ms, high_ms = await books.recoveries(connection)
        finally:
            await connection.close()
        await self._assert_examined()
        for one in self.deployments:
            assert '"drift of' not in one.log_path.read_text(errors="replace")
        return (
            f"{len(self.answered):,} calls answered by {len(self.deployments)} gateways, refused"
            f" {self.refused}, of what was scarce {scarce.told(self._purses)}; ends"
            f" {dict(sums.kinds)}; {recoveries} recoveries, median"
            f" {middle_ms:.0f} ms, p99 {high_ms:.0f} ms; drained in {sums.drained_s:.1f} s; exact,"
            " verify finds no difference"
        )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder

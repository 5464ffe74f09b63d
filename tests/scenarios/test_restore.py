"""The restore drill of docs/operations.md: what is lost is put back, and the books are exact.

After each case `tollgate verify` finds no difference, and the records are what the vendor's log
says, as far as the durability mode promises it.
"""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import owed
from tests.scenarios.outages import children
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
AT_ONCE = 40
CALLS = 12 * AT_ONCE if LONG else AT_ONCE
CREDIT = 10_000_000_000
ASK: list[Any] = [{"role": "user", "content": "hello"}]
WITHIN_S = 30.0


class Drill:
    """A deployment, its key, and what the vendor says that its calls cost."""

    def __init__(self, tollgate: Deployment, vendor: Vendor, key: Key, model: str) -> None:
        self.tollgate, self.vendor, self.key, self.model = tollgate, vendor, key, model
        self.backup = tollgate.folder / "backup"
        self.credit = CREDIT
        self.began_s = 0.0
        self.died: set[str] = set()
        self.took_s: dict[str, float] = {}

    async def call(self) -> None:
        """So many calls, each answered in full."""
        async with self.tollgate.openai(self.key) as client:
            create = client.chat.completions.create
            for _ in range(0, CALLS, AT_ONCE):
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_ONCE):
                        group.create_task(create(model=self.model, messages=ASK, max_tokens=50))

    async def booked(self) -> None:
        """Return once Postgres has every call the vendor saw."""
        seen = len(await self.vendor.quiet())
        await self.tollgate.records(self.key.organization_id, count=seen, within_s=WITHIN_S)

    async def lose_power(self) -> None:
        """kill -9 of everything at once."""
        servers = [
            int((self.tollgate.data / f"{name}.lock").read_text())
            for name in ("postgres", "valkey")
        ]
        pids = [*self.tollgate.pids("control"), *self.tollgate.pids("worker"), *servers]
        pids += [pid for server in servers for pid in children(server)]
        self.tollgate.kill()
        for pid in pids:
            with suppress(ProcessLookupError):  # it has noticed already
                os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(WITHIN_S):
            while any(Path(f"/proc/{pid}").exists() for pid in pids):
                await asyncio.sleep(0.01)

    async def lose(self, *names: str) -> None:
        """A broken disk takes these along; everything starts again."""
        for name in names:
            shutil.rmtree(self.tollgate.data / name)
        self.began_s = time.monotonic()
        await self.tollgate.start()

    async def exact(self, name: str, began_s: float, *, died: str = "") -> None:
        """Back at work, and to the nano what the vendor's log says; how long it took is kept.

        `died`: the model of calls that nobody can charge exactly, as their gateway died with them.
        """
        tollgate, who = self.tollgate, self.key.organization_id
        await tollgate.until_ready()
        seen = await self.vendor.quiet()
        rows = await tollgate.records(who, count=len(seen), within_s=WITHIN_S)
        assert len(rows) == len(seen), f"{name}: {len(rows)} records of {len(seen)} calls"
        self.died |= {died} - {""}
        bills = owed(entry for entry in seen if entry.model not in self.died)
        ended = [row for row in rows if row["model_requested"] not in self.died]
        assert sum(row["charge"] for row in ended) == bills, name
        others = [row for row in rows if row["model_requested"] in self.died]
        assert {row["kind"] for row in others} <= {"lost", "expired"}
        charged = sum(row["charge"] for row in rows)
        assert await tollgate.wallet(who) == self.credit - charged
        assert tollgate.run("verify") == "No difference.\n", name
        self.took_s[name] = time.monotonic() - began_s
        await self.healthy(name)

    async def healthy(self, name: str) -> None:
        """The doctor has no problem with it, once the bases that were granted are pushed."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                done = await asyncio.to_thread(self.tollgate._command, "doctor", "--json")
                found = json.loads(done.stdout)
                problems = {one["check"] for one in found if one["grade"] == "problem"}
                if not problems:
                    return
                assert problems <= {"wallets"}, f"{name}: {done.stdout}"
                await asyncio.sleep(0.2)


@pytest.fixture
async def drill(folder: Path, vendor_apart: Vendor) -> AsyncIterator[Drill]:
    """A deployment of its own with calls in the books, and a backup made of it."""
    await vendor_apart.forget()
    model = await vendor_apart.script("drill", input_tokens=11, output_tokens=7)
    leases = {"ledger": {"hold_lease_s": 6, "hold_renew_s": 2}}
    async with Deployment.started(
        folder, vendor_port=vendor_apart.port, changes=leases
    ) as tollgate:
        made = Drill(tollgate, vendor_apart, await tollgate.new_key(), model)
        await made.call()
        await made.booked()
        assert "Backed up into" in tollgate.run("backup", str(made.backup))
        yield made


async def postgres_restored(drill: Drill) -> None:
    """Postgres is put back to the backup; Redis and the journals have gone on."""
    tollgate, who = drill.tollgate, drill.key.organization_id
    tollgate.run("credit", "grant", who, "1", "--reason", "after the backup")
    await drill.booked()
    await drill.call()  # perhaps in the streams alone
    await drill.lose_power()
    began_s = time.monotonic()
    assert "before-" in tollgate.run("restore", str(drill.backup))
    await tollgate.start()
    await until_letters(tollgate)
    # What Postgres alone decided since the backup is gone from it: each a dead letter to resolve.
    tollgate.run("dead-letters", "resolve", "1", "--write-off", "--reason", "granted again")
    tollgate.run("credit", "grant", who, "1", "--reason", "as after the backup")
    drill.credit += 1_000_000_000
    await drill.exact("Postgres restored, Redis kept", began_s)


async def redis_lost(drill: Drill) -> None:
    """Redis is gone with all its data; Postgres and the journals are there."""
    await drill.lose_power()
    await drill.lose("valkey")
    await drill.exact("Redis lost", drill.began_s)


async def journals_lost(drill: Drill) -> None:
    """The gateway's disk is gone, with a stream under way; what had reached Redis is there."""
    tollgate = drill.tollgate
    await drill.booked()
    held = await drill.vendor.script("stays", deltas=9, output_tokens=9, hold_at=4)
    async with tollgate.openai(drill.key) as client:
        stream = await client.chat.completions.create(
            model=held, messages=ASK, max_tokens=50, stream=True
        )
        await anext(aiter(stream))
        await drill.lose_power()
        await drill.vendor.release()
    await drill.lose("journal")
    await drill.exact("journals lost", drill.began_s, died=held)


async def both_lost(drill: Drill) -> None:
    """Redis and journals are gone: all that Postgres had is there."""
    await drill.booked()
    await drill.lose_power()
    await drill.lose("journal", "valkey")
    await drill.exact("Redis and journals lost", drill.began_s)


async def everything_lost(drill: Drill) -> None:
    """A new machine gets a backup that was made a moment ago."""
    fresh = drill.backup.with_name("backup-2")
    await drill.booked()
    drill.tollgate.run("backup", str(fresh))
    await drill.lose_power()
    shutil.rmtree(drill.tollgate.data)
    began_s = time.monotonic()
    drill.tollgate.run("restore", str(fresh))
    await drill.tollgate.start()
    await drill.exact("everything lost", began_s)


CASES = [postgres_restored, redis_lost, journals_lost]
CASES += [both_lost, everything_lost] if LONG else []


@pytest.mark.timeout(600)  # five starts of everything, after a thousand calls
async def test_whatever_is_lost_the_books_are_exact_after_its_drill(drill: Drill) -> None:
    a_backup_is_private_whole_and_never_overwritten(drill)
    for case in CASES:
        await drill.call()
        await case(drill)
    print(
        f"restore drill, {CALLS} calls before each: "
        + "; ".join(f"{name} {took_s:.1f} s" for name, took_s in drill.took_s.items())
        + "; each time every record as the vendor's log, no difference"
    )


def a_backup_is_private_whole_and_never_overwritten(drill: Drill) -> None:
    tollgate, backup = drill.tollgate, drill.backup
    modes = {path.name: path.stat().st_mode & 0o077 for path in backup.iterdir()}
    assert modes["pepper"] == modes["passwords.json"] == modes["postgres"] == 0
    assert not backup.with_name(f".{backup.name}.part").exists()
    assert "exists" in tollgate.run_failing("backup", str(backup))
    assert "is in use by process" in tollgate.run_failing("restore", str(backup))


async def until_letters(tollgate: Deployment) -> None:
    """Wait until the lost credit has shown up."""
    async with asyncio.timeout(WITHIN_S):
        while "went back in time" not in await asyncio.to_thread(
            tollgate.run, "dead-letters", "list", "--json"
        ):
            await asyncio.sleep(0.2)

"""A batch is in Postgres wholly and once: whoever dies, whatever it holds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings

from ledger.commit import Source, Superseded, commit_all, commit_batch
from ledger.postgres import AWAY
from ledger.record import EndKind, Record, encode
from ledger.stream import Window, parse
from tests.ledger.deployment import Deployment, Line, entry_fields, new_call_id, record_of
from tests.ledger.histories import Expected, Plan, lines, plans

WINDOW = Window("key-1", 0, 500)


Result = TypeVar("Result")


class Crashing(asyncpg.Connection):
    """A connection that dies at its n-th statement, before the server has it or after."""

    statements = 0
    dies_at = 0
    dies_before = False

    async def _counted(self, statement: Callable[[], Awaitable[Result]]) -> Result:
        self.statements += 1
        if self.statements == self.dies_at and self.dies_before:
            self._die()
        number = self.statements
        answer = await statement()
        if number == self.dies_at:
            self._die()
        return answer

    def _die(self) -> None:
        self.terminate()
        raise asyncpg.ConnectionDoesNotExistError("killed by the test")

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        return await self._counted(lambda: super(Crashing, self).execute(query, *args, **options))

    async def fetch(self, query: str, *args: Any, **options: Any) -> list[Any]:
        return await self._counted(lambda: super(Crashing, self).fetch(query, *args, **options))

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        return await self._counted(lambda: super(Crashing, self).fetchrow(query, *args, **options))

    async def copy_records_to_table(self, table_name: str, **options: Any) -> str:
        copy = super().copy_records_to_table
        return await self._counted(lambda: copy(table_name, **options))


def sources(entries: list[dict[bytes, bytes]], start: int) -> list[Source]:
    return [
        Source(parse(f"{start + number}-0", fields), fields)
        for number, fields in enumerate(entries, 1)
    ]


async def test_a_connection_killed_at_any_statement_leaves_a_batch_undone_or_done(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    caps = (WINDOW,)
    expired = [Line(new_call_id(), acme, EndKind.EXPIRED, 0) for _ in range(60)]
    await deployment.write(acme, expired)
    expected, point, died = 0, 0, True
    while died:
        point, died = point + 1, False
        for dies_before in (True, False):
            old = expired.pop().call_id
            after = await deployment.watermark(acme)
            entries = [
                Line(new_call_id(), acme, EndKind.SETTLED, 10, windows=caps).fields(),
                Line(new_call_id(), acme, EndKind.SETTLED, 5, moved=False).fields(),
                Line(old, acme, EndKind.SETTLED, 3).fields(),
                {b"k": b"nonsense"},
            ]
            batch = sources(entries, int(after.stream_id.partition("-")[0]))
            connection = await asyncpg.connect(deployment.url, connection_class=Crashing)
            connection.dies_at, connection.dies_before = point, dies_before
            try:
                await commit_all(connection, acme.partition, sources=batch, after=after)
            except (asyncpg.PostgresError, *AWAY):
                died = True
            finally:
                connection.terminate()
            # The next flusher asks the watermark, and nothing else, whether it was done. The server
            # may need a moment to notice that the row's owner is dead.
            while await deployment.watermark(acme) == after:
                async with deployment.connected() as healthy:
                    await commit_all(healthy, acme.partition, sources=batch, after=after)
            expected += 18
            assert await deployment.balance(acme) == 1_000_000 - expected
    assert point > 10  # the crash points were really there
    assert await deployment.differences() == []


async def test_two_flushers_at_once_write_every_entry_once(deployment: Deployment) -> None:
    acme = await deployment.active()
    ends = [Line(new_call_id(), acme, EndKind.SETTLED, 7) for _ in range(60)]
    everything = sources([end.fields() for end in ends], 0)

    async def flusher() -> int:
        wrote = 0
        async with deployment.connected() as connection:
            while True:
                after = await deployment.watermark(acme)
                at = int(after.stream_id.partition("-")[0])
                batch = everything[at : at + 5]
                if not batch:
                    return wrote
                done = await commit_all(connection, acme.partition, sources=batch, after=after)
                wrote += sum(committed.entries for committed in done)

    assert sum(await asyncio.gather(flusher(), flusher(), flusher())) == 60
    assert await deployment.balance(acme) == 1_000_000 - 60 * 7
    assert await deployment.count("usage_record") == 60
    assert await deployment.differences() == []


async def test_a_batch_behind_a_watermark_that_moved_is_not_written(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    stale = await deployment.watermark(acme)
    await deployment.write(acme, [Line(new_call_id(), acme, EndKind.SETTLED, 7)])
    batch = sources([Line(new_call_id(), acme, EndKind.SETTLED, 7).fields()], 0)
    async with deployment.connected() as connection:
        assert await commit_batch(connection, acme.partition, sources=batch, after=stale) is None
    assert await deployment.count("usage_record") == 1


async def test_a_recovery_that_was_overtaken_writes_nothing(deployment: Deployment) -> None:
    acme = await deployment.active()
    after = await deployment.watermark(acme)
    batch = sources([Line(new_call_id(), acme, EndKind.SETTLED, 7).fields()], 0)
    async with deployment.connected() as connection:
        with pytest.raises(Superseded):
            await commit_batch(
                connection, acme.partition, sources=batch, after=after, recovering=(1, "old")
            )
    assert await deployment.count("usage_record") == 0


def _longer_than_a_column(record: Record) -> None:
    record.status = 2**40


def _of_no_uuid(record: Record) -> None:
    record.key_id = "not a uuid"


def _with_a_nul(record: Record) -> None:
    record.operation = "chat\0"


@pytest.mark.parametrize("spoil", [_longer_than_a_column, _of_no_uuid, _with_a_nul])
async def test_a_record_that_postgres_refuses_keeps_its_call_and_its_money(
    deployment: Deployment, spoil: Callable[[Record], None]
) -> None:
    acme = await deployment.active()
    entries = [Line(new_call_id(), acme, EndKind.SETTLED, 10).fields() for _ in range(9)]
    call_id = new_call_id()
    record = record_of(acme, call_id, charge=10)
    spoil(record)
    entries.insert(4, entry_fields(Line(call_id, acme, EndKind.SETTLED, 10), encode(record)))
    await deployment.write(acme, entries)
    assert await deployment.count("usage_record") == 10
    assert await deployment.count("dead_letter") == 1
    assert await deployment.balance(acme) == 1_000_000 - 100
    assert await deployment.differences() == []


async def test_poison_goes_to_the_dead_letters_and_its_money_is_posted(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    whole = Line(new_call_id(), acme, EndKind.SETTLED, 10, windows=(WINDOW,))
    await deployment.write(
        acme,
        [
            whole,
            {**whole.fields(), b"i": b"?"},
            {b"nothing": b"of ours"},
            {**whole.fields(), b"w": b"nobody", b"i": new_call_id()},
        ],
    )
    assert await deployment.count("dead_letter") == 3
    assert await deployment.balance(acme) == 1_000_000 - 20
    spent = await deployment.pool.fetchval("SELECT spent FROM cap_window WHERE id = $1", WINDOW.id)
    assert spent == 20
    assert await deployment.differences() == []


async def test_a_wallet_that_no_organization_has_is_kept_and_told(deployment: Deployment) -> None:
    acme = await deployment.active()
    stranger = acme._replace(id="00000000-0000-4000-8000-00000000dead")
    await deployment.write(acme, [Line(new_call_id(), stranger, EndKind.SETTLED, 10)])
    letter = await deployment.pool.fetchrow("SELECT error FROM dead_letter")
    assert letter is not None
    assert letter["error"] == "nobody's wallet"
    assert await deployment.differences() == []


async def test_a_call_older_than_what_is_kept_is_not_charged_again(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    ancient = bytes(6) + new_call_id()[6:]
    await deployment.write(
        acme,
        [
            Line(ancient, acme, EndKind.SETTLED, 10, moved=False),
            Line(ancient, acme, EndKind.SETTLED, 4, moved=True),
        ],
    )
    assert await deployment.count("usage_record") == 0
    assert await deployment.count("dead_letter") == 2
    assert await deployment.balance(acme) == 1_000_000 - 4  # what Redis took is never hidden
    assert await deployment.differences() == []


async def test_a_base_that_postgres_never_decided_is_told(deployment: Deployment) -> None:
    acme = await deployment.active()
    base = {b"k": b"base", b"w": acme.id.encode(), b"b": b"5", b"v": b"999", b"a": b"credit"}
    await deployment.write(acme, [base])
    assert await deployment.count("dead_letter") == 1
    assert await deployment.balance(acme) == 1_000_000


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plans())
async def test_any_history_of_ends_adds_up_in_postgres(deployment: Deployment, plan: Plan) -> None:
    acme = await deployment.organization(credit=5_000)
    ends = lines(plan, acme)
    expected = Expected(ends)
    half = len(ends) // 2
    for part in (ends[:half], ends[half:]):
        if part:
            await deployment.write(acme, part)
    wallet = await deployment.book.wallet(acme.id)
    assert wallet is not None
    assert wallet.spent == expected.spent
    assert wallet.balance == 5_000 - expected.charged
    assert await deployment.differences() == []

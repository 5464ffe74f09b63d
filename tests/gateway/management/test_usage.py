"""Reports over calls that went the whole way: hold, settle, stream, flusher, rollup."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import uuid_utils.compat as uuid7s

from gateway.management import credits as credits_
from gateway.management import organizations, usage
from gateway.management.api_keys import ApiKey
from gateway.management.credits import Grant
from gateway.management.organizations import OrganizationTerms
from gateway.management.usage import Call, Grouping, Line
from ledger.admission import End, Held, Hold
from ledger.flusher import Flusher
from ledger.functions import Partition
from ledger.money import Nanos, nanos
from ledger.record import EndKind, Outcome, Record, encode
from tests.gateway.tenancy import Tenancy, activate, new_key, tenancy

NOW = datetime.now(UTC)  # noqa: TID251 - records of other days would need partitions of theirs
YESTERDAY, TOMORROW = NOW - timedelta(days=1), NOW + timedelta(days=1)


class Trade(Tenancy):
    """An organization whose calls are charged and flushed."""

    key: ApiKey

    async def call(self, *, charge: int, model: str = "gpt-4o", key: ApiKey | None = None) -> UUID:
        """One call that was answered; its id."""
        call_id = uuid7s.uuid7()
        wallet, partition = str(self.organization_id), Partition(self.redis, 0)
        record = Record(
            call_id=call_id.bytes,
            organization_id=wallet,
            project_id=wallet,
            key_id=str((key or self.key).id),
            member_id="",
            admitted_us=(call_id.int >> 80) * 1000,
            operation="chat/completions",
            provider="openai",
            model_requested=model,
            model_target=model,
            price_version="v",
            held=charge,
            kind=EndKind.SETTLED,
            outcome=Outcome.SUCCESS,
            charge=charge,
            usage={"input": 10, "output": 5},
            usage_source="reported",
            status=200,
        )
        hold = Hold(call_id.bytes, 0, wallet, Nanos(charge))
        assert isinstance(await partition.hold(1, hold), Held)
        end = End(call_id.bytes, 0, wallet, EndKind.SETTLED, Nanos(charge), encode(record))
        assert (await partition.settle(1, end)).outcome == "settled"
        return call_id


@pytest.fixture
async def trade(postgres_url: str, redis_url: str) -> AsyncIterator[Trade]:
    async with tenancy(postgres_url, redis_url) as stage:
        made = Trade(stage.pool, stage.redis)
        made.organization_id = stage.organization_id
        await activate(made, 0)
        grant = Grant(made.organization_id, nanos(1), "test", "operator")
        assert (await credits_.grant(made.pool, made.redis, grant)).is_usable
        made.key = await made.make_key(new_key())
        yield made


async def flush(trade: Trade, postgres_url: str) -> None:
    """Everything that has ended is in Postgres."""
    flusher = Flusher(
        postgres_url,
        trade.redis,
        partitions=[0],
        clock=time.time,  # noqa: TID251 - a test is its own composition root
        on_epoch=lambda _: None,
    )
    assert await flusher.flush_once(0) > 0


async def lines(trade: Trade, by: Grouping) -> list[Line]:
    """The report of these days."""
    return await usage.report(
        trade.pool, trade.organization_id, by=by, since=YESTERDAY, until=TOMORROW
    )


async def test_the_lines_of_every_report_sum_up_to_what_was_spent(
    trade: Trade, postgres_url: str
) -> None:
    other = await trade.make_key(new_key())
    await trade.call(charge=7)
    await trade.call(charge=20, model="small")
    await trade.call(charge=300, key=other)
    await flush(trade, postgres_url)
    spent = (await organizations.resolve(trade.pool, "Acme")).spent
    assert spent == 327
    for by in Grouping:
        report = await lines(trade, by)
        assert sum(line.charge for line in report) == spent
        assert sum(line.calls for line in report) == 3
        assert sum(line.input for line in report) == 30
        assert sum(line.output for line in report) == 15


async def test_models_and_keys_are_sorted_by_what_they_cost(
    trade: Trade, postgres_url: str
) -> None:
    other = await trade.make_key(new_key())
    await trade.call(charge=7)
    await trade.call(charge=20, model="small", key=other)
    await flush(trade, postgres_url)
    models = await lines(trade, Grouping.MODEL)
    assert [(line.label, line.charge) for line in models] == [
        ("openai/small", 20),
        ("openai/gpt-4o", 7),
    ]
    keys = await lines(trade, Grouping.KEY)
    assert [line.label for line in keys] == [f"key ({other.last4})", f"key ({trade.key.last4})"]


async def test_a_day_is_a_day_of_the_organization(trade: Trade, postgres_url: str) -> None:
    await trade.call(charge=7)
    await flush(trade, postgres_url)
    # Together, the two zones have another date than each other at every moment.
    days = []
    for zone, hours in (("Pacific/Kiritimati", 14), ("Pacific/Midway", -11)):
        await trade.pool.execute("UPDATE organization SET time_zone = $1", zone)
        (line,) = await lines(trade, Grouping.DAY)
        hour = NOW.replace(minute=0, second=0, microsecond=0)
        candidates = {hour + timedelta(hours=hours), hour + timedelta(hours=hours + 1)}
        assert line.label in {moment.strftime("%Y-%m-%d") for moment in candidates}
        days.append(line.label)
    assert days[0] > days[1]


async def test_the_newest_calls_come_first(trade: Trade, postgres_url: str) -> None:
    ids = [await trade.call(charge=charge) for charge in (1, 2, 3)]
    await flush(trade, postgres_url)
    calls = await usage.recent(trade.pool, trade.organization_id, limit=2)
    assert [call.call_id for call in calls] == [ids[2], ids[1]]
    assert calls[0] == Call(
        call_id=ids[2],
        admitted_at=calls[0].admitted_at,
        key="key",
        operation="chat/completions",
        provider="openai",
        model="gpt-4o",
        outcome="success",
        kind="settled",
        input=10,
        cache_read=0,
        cache_write=0,
        output=5,
        reasoning=0,
        usage_source="reported",
        charge=3,
    )


async def test_nobody_sees_the_usage_of_others(trade: Trade, postgres_url: str) -> None:
    other = await organizations.create(trade.pool, trade.redis, OrganizationTerms(name="Ada"))
    await trade.call(charge=7)
    await flush(trade, postgres_url)
    trade.organization_id = other.id
    assert [await lines(trade, by) for by in Grouping] == [[], [], []]
    assert await usage.recent(trade.pool, other.id, limit=10) == []


async def test_what_lies_outside_the_time_asked_for_is_not_counted(
    trade: Trade, postgres_url: str
) -> None:
    await trade.call(charge=7)
    await flush(trade, postgres_url)
    for since, until in ((TOMORROW, TOMORROW), (YESTERDAY, YESTERDAY)):
        report = await usage.report(
            trade.pool, trade.organization_id, by=Grouping.DAY, since=since, until=until
        )
        assert report == []

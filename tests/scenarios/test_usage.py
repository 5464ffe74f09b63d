"""What the vendor reports is what is charged, token by token and nano by nano."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

from ledger.pricing import Price, PriceSheet
from ledger.usage import Unit, Usage
from tests.scenarios.caller import CHAT, RESPONSES, asks, caller, post
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, owed
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
EMBEDDINGS = "/v1/embeddings"
THOUGHT = {"input_tokens": 51, "output_tokens": 136, "reasoning_tokens": 31}
COLUMNS = {
    Unit.INPUT: "input",
    Unit.CACHE_READ: "cache_read",
    Unit.CACHE_WRITE_5M: "cache_write",
    Unit.OUTPUT: "output",
}


async def price_of(tollgate: Deployment, record: Any) -> Price:
    """The price that a record names, from the sheet that is kept with it."""
    connection = await tollgate.postgres()
    try:
        sheet = await connection.fetchval(
            "SELECT sheet FROM price_sheet WHERE version = $1", record["price_version"]
        )
    finally:
        await connection.close()
    admitted_at: datetime = record["admitted_at"]
    found = PriceSheet.load(sheet).price(
        record["provider"], record["model_target"], admitted_at.timestamp()
    )
    assert found is not None
    return found


def usage_of(record: Any) -> Usage:
    """The usage that a record tells."""
    counts = {unit.value: record[column] for unit, column in COLUMNS.items()}
    return Usage(counts, tier=record["tier"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_reasoning_is_a_part_of_the_output_and_costs_once(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, *, path: str, stream: bool
) -> None:
    model = await vendor_apart.script("thinking", **THOUGHT)

    await post(tollgate, key, path, asks(path, model, stream=stream))

    (record,) = await assert_books(tollgate, key, records=1, charge=51 * 3000 + 136 * 15000)
    assert (record["input"], record["output"], record["reasoning"]) == (51, 136, 31)
    assert owed(await vendor_apart.quiet()) == record["charge"]
    how = "stream" if stream else "whole"
    print(f"A5 {path[4:]} {how}: 51 in, 136 out of which 31 reasoning, output 2,040,000 nano")


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_told_beside_the_output_is_added_to_it(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, *, stream: bool
) -> None:
    beside = {"completion_tokens": 136 - 31}
    model = await vendor_apart.script("thinking", **THOUGHT, usage_fields=beside)

    await post(tollgate, key, CHAT, asks(CHAT, f"xai/{model}", stream=stream))

    (record,) = await assert_books(tollgate, key, records=1, charge=51 * 3000 + 136 * 15000)
    assert (record["output"], record["reasoning"]) == (136, 31)
    how = "stream" if stream else "whole"
    print(f"A5 xai chat {how}: 105 out + 31 reasoning = 136, output 2,040,000 nano")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_cached_is_a_part_of_the_input_and_costs_less(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, *, stream: bool
) -> None:
    script = {"input_tokens": 12_307, "cached_tokens": 12_304, "output_tokens": 550}
    model = await vendor_apart.script("cached", **script)

    await post(tollgate, key, CHAT, asks(CHAT, model, stream=stream))

    (record,) = await assert_books(tollgate, key, records=1, charge=11_950_200)
    assert (record["input"], record["cache_read"], record["output"]) == (3, 12_304, 550)


async def test_tiny_calls_are_neither_free_nor_rounded_up(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    name = await vendor_apart.script("tiny", input_tokens=1)
    calls = iter(range(1000))

    async def work() -> None:
        async with caller(tollgate) as line:
            for _ in calls:
                answer = await line.post(EMBEDDINGS, key.secret, asks(EMBEDDINGS, f"small/{name}"))
                assert answer.headers["x-tollgate-charge-nanos"] == "20"

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(work())

    records = await assert_books(tollgate, key, records=1000, charge=1000 * 20)
    price = await price_of(tollgate, records[0])
    million = sum(price.charge(Usage({Unit.INPUT: 1})) for _ in range(1_000_000))
    assert million == 20_000_000
    print("A17 tiny: 1,000 calls of 1 token 20,000 nano; 1,000,000 by the same sheet 20,000,000")


async def test_every_charge_is_the_sum_of_the_items_shown(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    plain = await vendor_apart.script("plain", input_tokens=123, output_tokens=78)
    cached = await vendor_apart.script("cached", input_tokens=999, cached_tokens=1, output_tokens=7)
    for model in (f"odd/{plain}", f"odd/{cached}", plain, cached, f"small/{plain}"):
        for path in (CHAT, RESPONSES):
            answer = await post(tollgate, key, path, asks(path, model))
            assert answer.status == 200

    records = await assert_books(tollgate, key, records=10)
    assert records[0]["charge"] == 340_500
    for record in records:
        lines = (await price_of(tollgate, record)).lines(usage_of(record))
        assert sum(line.nanos for line in lines) == record["charge"]
    total = sum(record["charge"] for record in records)
    print(f"A17 items: 10 of 10 rows equal their items, {total:,} nano; 123 + 78 tokens 340,500")

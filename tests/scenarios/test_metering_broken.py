"""A meter that breaks leaves a record and raises the alarm: no call is ever silently free."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from providers.adapter import Adapter
from tests.gateway.proxy.gatehouse import Gatehouse
from tests.gateway.proxy.test_calls import ASK, Buggy, Forgetful
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
CALLS = 100  # as many as the key may make in a minute
AT_ONCE = 20


@pytest.mark.parametrize(("name", "adapter"), [("sound", None), ("broken", Buggy(Forgetful))])
async def test_every_admitted_call_has_its_end_though_meters_break(
    redis_url: str, vendor: Vendor, tmp_path: Path, name: str, adapter: Adapter | None
) -> None:
    async with Gatehouse.opened(redis_url, vendor, tmp_path, adapter=adapter) as gate:
        statuses: Counter[int] = Counter()
        for _ in range(CALLS // AT_ONCE):
            asked = [gate.post({**ASK, "model": "m"}) for _ in range(AT_ONCE)]
            statuses.update(status for status, _, _ in await asyncio.gather(*asked))
        wallet, records = await gate.settled(), await gate.records()
        unmetered = sum(gate.metrics.unmetered.series.values())
        admitted = sum(gate.metrics.calls.series.values())
    kinds = Counter(record.kind for record in records)
    assert (admitted, wallet["held"], statuses[200]) == (CALLS, 0, CALLS)
    assert len({record.call_id for record in records}) == CALLS
    assert min(record.charge for record in records) > 0
    assert unmetered == kinds["lost"] == (0 if adapter is None else CALLS)
    print(f"G6: meters {name}: {admitted} admitted = {dict(kinds)}, unmetered_total {unmetered}")

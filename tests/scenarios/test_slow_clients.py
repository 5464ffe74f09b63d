"""Clients that are slow on purpose: they are cut in time, and nobody beside them waits for them.

Slow heads, slow bodies and slow readers, so many of each, come back as soon as they are cut.
`LONG=1` has a thousand of each, waits until the readers are cut as well, which takes a minute, and
judges what healthy calls take.
"""

import asyncio
import statistics
from pathlib import Path

import pytest

from tests.scenarios.deployment import Deployment
from tests.scenarios.measured import p99_s, rss_mib, until_calm
from tests.scenarios.scale import LONG
from tests.scenarios.siege import DRIP_S, KINDS, besieged
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario

OF_EACH = 1_000 if LONG else 100
PAIRS = 5 if LONG else 1
CUT_S_MAX = 15.0  # the promise: head and grace 10 s, and what refusing takes
READER_CUT_S_MAX = 75.0  # it has 60 s to take 64 KiB
RSS_MIB_MAX = 200


@pytest.mark.timeout(400)
async def test_slow_clients_are_cut_in_time_and_slow_nobody_down(
    folder: Path, vendor_apart: Vendor
) -> None:
    limits = {"connections_per_address_max": 10_000}
    async with Deployment.started(
        folder,
        vendor_port=vendor_apart.port,
        changes={"limits": limits, "providers": {"vendor": {"connections_max": 10_000}}},
    ) as tollgate:
        key, theirs = await tollgate.new_key(), await tollgate.new_key(credit_usd="1000")
        stream = await vendor_apart.script("slow", text="x" * 4_000, output_tokens=100)
        siege = (tollgate.ports["data"], theirs.secret, f"vendor/{stream}")
        await p99_s(tollgate, key)
        pids = tollgate.pids("worker")
        before_mib = rss_mib(pids)
        alone, beside, most_mib = [], [], 0.0
        for _ in range(PAIRS):
            await until_calm(pids)
            alone.append(await p99_s(tollgate, key))
            async with besieged(*siege, of_each=OF_EACH):
                beside.append(await p99_s(tollgate, key))
                most_mib = max(most_mib, rss_mib(pids))
        async with besieged(*siege, of_each=OF_EACH) as cut_s:
            await asyncio.sleep((READER_CUT_S_MAX if LONG else CUT_S_MAX) + DRIP_S)
        assert tollgate.pids("worker") == pids
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    more_ms = statistics.median(1000 * (b - a) for a, b in zip(alone, beside, strict=True))
    promised_s = {"head": CUT_S_MAX, "body": CUT_S_MAX, "reader": READER_CUT_S_MAX}
    cut = {kind: cut_s[kind] for kind in KINDS if LONG or kind != "reader"}
    assert min(len(each) for each in cut.values()) >= OF_EACH
    longest = {kind: max(each) for kind, each in cut.items()}
    assert all(longest[kind] < promised_s[kind] + DRIP_S for kind in cut)
    assert most_mib - before_mib < RSS_MIB_MAX
    assert not LONG or statistics.median(ratios) <= 1.2 or more_ms <= 1.0
    print(
        f"T15: 3 x {OF_EACH} slow clients: healthy p99 x {statistics.median(ratios):.2f},"
        f" {more_ms:+.2f} ms (median of {PAIRS} pairs; alone {1000 * statistics.median(alone):.1f}"
        f" ms); longest lived: {', '.join(f'{kind} {s:.1f} s' for kind, s in longest.items())};"
        f" memory {most_mib - before_mib:+.0f} MiB"
    )

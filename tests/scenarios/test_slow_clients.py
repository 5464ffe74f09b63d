"""Clients that are slow on purpose: they are cut in time, and nobody beside them waits for them.

Slow heads, slow bodies and slow readers, so many of each, come back as soon as they are cut. Cut in
time is everybody: who is connected yet at the end must be younger than what is promised. And nobody
is cut before, or for anything else: who is refused at once is no slow client that was found out.
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
from tests.scenarios.siege import DRIP_S, KINDS, Let, besieged
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario

OF_EACH = 1_000 if LONG else 100
PAIRS = 5 if LONG else 1
CUT_S_MAX = 15.0  # the promise: head and grace 10 s, and what refusing takes
READER_CUT_S_MAX = 75.0  # it has 60 s to take 64 KiB
CUT_S_MIN = 9.5  # its client's clock begins before ours; a client that is slow once must be let
READER_CUT_S_MIN = 59.5
RSS_MIB_MAX = 200


def assert_let_as_promised(let: Let) -> dict[str, tuple[float, float]]:
    """Whoever was cut and whoever is connected yet; the shortest and the longest of each kind.

    A client is looked at every `DRIP_S`.
    """
    promised_s = {
        "head": (CUT_S_MIN, CUT_S_MAX),
        "body": (CUT_S_MIN, CUT_S_MAX),
        "reader": (READER_CUT_S_MIN, READER_CUT_S_MAX),
    }
    told = {"head": {""}, "body": {"408"}, "reader": {"200"}}
    lived = {}
    for kind, (least_s, most_s) in promised_s.items():
        cut_s, open_s = let.cut[kind], let.open[kind]
        assert len(open_s) == OF_EACH, f"{kind}: somebody was not there any more"
        assert {*let.told[kind]} == told[kind], f"{kind}: told {let.told[kind]}"
        assert max(open_s) < most_s + DRIP_S, f"{kind}: {max(open_s):.1f} s old and not cut"
        if kind == "reader" and not LONG:
            assert not cut_s, "it had a minute"
            continue
        assert len(cut_s) >= OF_EACH
        lived[kind] = (min(cut_s), max(cut_s))
        assert min(cut_s) >= least_s, f"{kind}: cut after {min(cut_s):.1f} s"
        assert max(cut_s) < most_s + DRIP_S, f"{kind}: cut after {max(cut_s):.1f} s"
    return lived


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
        async with besieged(*siege, of_each=OF_EACH) as let:
            await asyncio.sleep((READER_CUT_S_MAX if LONG else CUT_S_MAX) + DRIP_S)
        assert tollgate.pids("worker") == pids
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    more_ms = statistics.median(1000 * (b - a) for a, b in zip(alone, beside, strict=True))
    lived = assert_let_as_promised(let)
    let_s = ", ".join(
        f"{kind} {least:.1f} to {most:.1f} s" for kind, (least, most) in lived.items()
    )
    oldest = ", ".join(f"{kind} {max(let.open[kind]):.1f} s" for kind in KINDS)
    assert most_mib - before_mib < RSS_MIB_MAX
    assert not LONG or statistics.median(ratios) <= 1.2 or more_ms <= 1.0
    print(
        f"T15: 3 x {OF_EACH} slow clients: healthy p99 x {statistics.median(ratios):.2f},"
        f" {more_ms:+.2f} ms (median of {PAIRS} pairs; alone {1000 * statistics.median(alone):.1f}"
        f" ms); cut after: {let_s}; connected yet, at most: {oldest};"
        f" memory {most_mib - before_mib:+.0f} MiB"
    )

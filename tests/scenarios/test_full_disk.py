"""The journals' disk is full: nothing is admitted, what is open ends, and all is well after."""

import asyncio
import os
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.scenarios.caller import CHAT, asks, post
from tests.scenarios.deployment import Deployment
from tests.scenarios.outages import (
    Pulse,
    assert_exact,
    checks,
    data_plane_is_ready,
    data_plane_is_unready,
    now_s,
    said,
    slowest_s,
    told,
    until,
    until_streaming,
)
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
OUTAGE_S = 60.0 if LONG else 1.5
INPUT, OUTPUT = 100, 10
CHARGE = INPUT * 3_000 + OUTPUT * 15_000
DISK_BYTES = 4 * 2**20
RECOVERED_S_MAX = 5.0
WAITED_S_MAX = 5.0
KINDS = ["disk", "file size"] if LONG else ["disk" if os.geteuid() == 0 else "file size"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small disk of its own; None where we may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    asked = [str(mount), "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if mount is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        yield None
        return
    yield place
    subprocess.run([str(shutil.which("umount")), "-l", str(place)], check=True)


@asynccontextmanager
async def full(tollgate: Deployment, disk: Path | None) -> AsyncIterator[None]:
    """Not a byte more fits: on the disk, or else in any file of a worker."""
    if disk is None:
        async with _limited(tollgate):
            yield
        return
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
        yield
    filler.unlink()


@asynccontextmanager
async def _limited(tollgate: Deployment) -> AsyncIterator[None]:
    """No file may grow beyond the journals' size, which is more than a log's of so few lines."""
    pids, no_limit = tollgate.pids("worker"), resource.RLIM_INFINITY
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, no_limit))
    try:
        yield
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (no_limit, no_limit))


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_are_refused_and_those_under_way_end_through_redis(
    folder: Path, vendor_apart: Vendor, disk: Path | None, kind: str
) -> None:
    if kind == "file size":
        disk = None
    elif disk is None:
        pytest.skip("only root may mount a disk; the limit of a file's size stands for it")
    loop = asyncio.get_running_loop()
    journals = {} if disk is None else {"ledger": {"journal": {"directory": str(disk / "j")}}}
    started = Deployment.started(folder, vendor_port=vendor_apart.port, changes=journals)
    async with started as tollgate:
        key = await tollgate.new_key(credit_usd="1000")
        model = await vendor_apart.script("jf", input_tokens=INPUT, output_tokens=OUTPUT)
        stream = await vendor_apart.script(
            "jfs", input_tokens=INPUT, output_tokens=OUTPUT, interval_s=0.15
        )
        asked = asks(CHAT, stream, stream=True, max_tokens=OUTPUT)
        pulse = Pulse(tollgate, [key], model)
        async with pulse.running(per_s=100), asyncio.TaskGroup() as group:
            await pulse.until_answered(loop.time(), within_s=10)
            pids = tollgate.pids("worker")
            open_stream = group.create_task(post(tollgate, key, CHAT, asked))
            await until_streaming(vendor_apart, "jfs")
            async with full(tollgate, disk):
                await asyncio.sleep(0.2)
                since_s, logged_s = loop.time(), now_s()
                await asyncio.sleep(OUTAGE_S)
                refused = pulse.since(since_s)
                lines = said(tollgate.log_path, since_s=logged_s, until_s=now_s())
                async with asyncio.timeout(WAITED_S_MAX):  # not for the disk, which is still full
                    await asyncio.wait({open_stream})
                await until(lambda: data_plane_is_unready(tollgate), within_s=WAITED_S_MAX)
                if disk is not None:
                    assert (await checks(tollgate, "worker-0"))["journal"] == "full"
            back_s = await pulse.until_answered(loop.time(), within_s=RECOVERED_S_MAX)
            await until(lambda: data_plane_is_ready(tollgate), within_s=RECOVERED_S_MAX)
            assert tollgate.pids("worker") == pids, "a worker died of it"
        assert open_stream.result().body.endswith(b"data: [DONE]\n\n")
        assert {(one.status, one.code) for one in refused} == {(503, "journal_full")}
        assert lines.most <= 1, lines
        assert set(told(pulse.seen)) == {"200", "503 journal_full"}
        await assert_exact(tollgate, answered=pulse.answered + 1, charge=CHARGE)
    print(
        f"full {kind}: {len(refused)} x 503 p99 {slowest_s(refused) * 1000:.0f} ms, {lines.lines}"
        f" log lines; an open stream ended; back in {back_s:.1f} s; {pulse.answered:,} exact"
    )

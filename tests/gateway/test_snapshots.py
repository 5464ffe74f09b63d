"""What several processes counted is added up, whatever becomes of them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.metrics import Metrics
from gateway.readiness import Readiness
from gateway.snapshots import Collector, Publisher


def publisher(folder: Path, process: str) -> Publisher:
    metrics = Metrics()
    metrics.configure(providers=["openai"], models=["m"])
    return Publisher(
        folder,
        process=process,
        metrics=metrics,
        readiness=Readiness(lambda: 0.0),
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def charge(one: Publisher, amount: int) -> None:
    one.metrics.charge.add(("openai", "m"), amount)
    one.metrics.calls_open.set(amount)
    one.metrics.journal_oldest_seconds.set(amount)
    one.metrics.conveyor_batch.observe(amount)


def charged(collector: Collector) -> float:
    [figure] = collector.total(1_000.0).series["charge_nanousd_total"]["openai", "m"]
    return figure


def test_counters_gauges_and_histograms_of_all_processes_are_joined(
    tmp_path: Path, stack: ExitStack
) -> None:
    control, *workers = [
        stack.enter_context(publisher(tmp_path, name)) for name in ("control", "w-0", "w-1")
    ]
    for amount, one in enumerate([control, *workers], start=1):
        charge(one, amount)
        one.publish(1_000.0)
    total = Collector(control).total(1_000.0)
    assert total.series["charge_nanousd_total"] == {("openai", "m"): [6]}
    assert total.series["calls_open"] == {(): [6]}
    assert total.series["journal_unproven_oldest_seconds"] == {(): [3]}
    [cells] = total.series["conveyor_batch_items"].values()
    assert (cells[:3], cells[-1]) == ([1, 1, 1], 6)
    assert set(total.ready) == {"control", "w-0", "w-1"}


def test_the_collector_knows_its_own_figures_as_they_are_now(
    tmp_path: Path, stack: ExitStack
) -> None:
    control = stack.enter_context(publisher(tmp_path, "control"))
    charge(control, 1)
    control.publish(1_000.0)
    charge(control, 1)
    assert charged(Collector(control)) == 2


def test_money_is_added_exactly_beyond_what_a_float_can_hold(
    tmp_path: Path, stack: ExitStack
) -> None:
    control, worker = [stack.enter_context(publisher(tmp_path, name)) for name in ("c", "w")]
    charge(control, 2**60)
    charge(worker, 1)
    worker.publish(1_000.0)
    assert charged(Collector(control)) == 2**60 + 1


def test_no_counter_goes_back_when_workers_come_and_go(tmp_path: Path, stack: ExitStack) -> None:
    control = stack.enter_context(publisher(tmp_path, "control"))
    charge(control, 1)
    collector = Collector(control)
    for round_ in range(1, 6):
        with publisher(tmp_path, "w-0") as worker:
            charge(worker, 10)
            worker.publish(1_000.0)
            assert charged(collector) == 1 + 10 * round_
        assert charged(collector) == 1 + 10 * round_
        total = collector.total(1_000.0)
        assert total.series["calls_open"] == {(): [1]}  # the dead have none
        assert set(total.ready) == {"control"}
    assert len(list(tmp_path.iterdir())) == 2  # the file of the dead and the control's lock


def test_a_collector_that_is_killed_while_folding_counts_nobody_twice(
    tmp_path: Path, stack: ExitStack
) -> None:
    control = stack.enter_context(publisher(tmp_path, "control"))
    with publisher(tmp_path, "w-0") as worker:
        charge(worker, 10)
    left = {path: path.read_bytes() for path in tmp_path.glob("w-0.*")}
    assert charged(Collector(control)) == 10
    for path, content in left.items():  # killed between writing the sum and removing these
        path.write_bytes(content)
    assert charged(Collector(control)) == 10
    with publisher(tmp_path, "w-0") as worker:
        charge(worker, 5)
    assert charged(Collector(control)) == 15


def test_figures_that_cannot_be_kept_are_shown_all_the_same(
    tmp_path: Path, stack: ExitStack
) -> None:
    control = stack.enter_context(publisher(tmp_path, "control"))
    with publisher(tmp_path, "w-0") as worker:
        charge(worker, 10)
    (tmp_path / "dead.new").mkdir()
    assert [charged(Collector(control)) for _ in range(2)] == [10, 10]
    (tmp_path / "dead.new").rmdir()
    assert [charged(Collector(control)) for _ in range(2)] == [10, 10]


def test_the_figures_outlive_a_restart_of_everything(tmp_path: Path) -> None:
    for round_ in range(1, 4):
        with publisher(tmp_path, "control") as control:
            charge(control, 7)
            assert charged(Collector(control)) == 7 * round_


def test_a_killed_process_is_dead_at_once(tmp_path: Path, stack: ExitStack) -> None:
    control = stack.enter_context(publisher(tmp_path, "control"))
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from tests.gateway.test_snapshots import charge, publisher\n"
        "one = publisher(Path(sys.argv[1]), 'w-0').__enter__()\n"
        "charge(one, 3)\none.publish(1_000.0)\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "up\n"
        assert set(Collector(control).total(1_000.0).ready) == {"control", "w-0"}
        os.kill(worker.pid, signal.SIGKILL)
    total = Collector(control).total(1_000.0)
    assert set(total.ready) == {"control"}
    assert total.series["charge_nanousd_total"] == {("openai", "m"): [3]}


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x94\xa1x"])
def test_a_file_that_makes_no_sense_is_left_out(
    tmp_path: Path, stack: ExitStack, content: bytes
) -> None:
    control = stack.enter_context(publisher(tmp_path, "control"))
    charge(control, 1)
    (tmp_path / "w-0.aa.snapshot").write_bytes(content)
    (tmp_path / "dead").write_bytes(content)
    assert charged(Collector(control)) == 1


async def test_a_running_publisher_measures_its_loop_and_publishes(
    tmp_path: Path, stack: ExitStack
) -> None:
    worker = stack.enter_context(publisher(tmp_path, "w-0"))
    worker.tick_s = 0.001
    async with asyncio.TaskGroup() as group:
        task = group.create_task(worker.run(lambda: 1_000.0))
        while not list(tmp_path.glob("*.snapshot")):
            await asyncio.sleep(0)
        task.cancel()
    [cells] = worker.metrics.loop_lag_seconds.series.values()
    assert sum(cells[:-1]) == 10

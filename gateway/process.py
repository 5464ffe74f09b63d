"""The entry of a child process: its loop, its signals, and its death when the supervisor dies.

python -m gateway.process control CONFIG WORKERS
python -m gateway.process worker CONFIG NUMBER WORKERS
"""

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvloop

from gateway.config import ConfigErrors, load
from gateway.logs import Lines, LineWriter, install


def main(arguments: list[str]) -> int:
    """Run one child until SIGTERM; returns its exit code."""
    role, config_path, *numbers = arguments
    try:
        config = load(Path(config_path))
    except ConfigErrors as error:
        print(error, file=sys.stderr)  # noqa: T201 - the log is configured by what cannot be read
        return 1
    limits = config.shutdown
    within_s = limits.control_s_max if role == "control" else limits.worker_s_max
    name = role if role == "control" else f"worker-{numbers[0]}"
    with LineWriter(sys.stderr.fileno()) as writer:
        lines = Lines(writer.write, process=name, wall_s=time.time)  # noqa: TID251 - a root
        install(lines, level=config.logging.level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            dropped = partial(getattr, writer, "dropped")
            children = [int(number) for number in numbers]
            runner.run(
                _run(
                    role,
                    Path(config_path),
                    children,
                    within_s=within_s,
                    lines=lines,
                    dropped=dropped,
                )
            )
    return 0


async def _run(
    role: str,
    config_path: Path,
    numbers: list[int],
    *,
    within_s: float,
    lines: Lines,
    dropped: Callable[[], int],
) -> None:
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, _ending, stop)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    stop_with_supervisor(stop, within_s=within_s)
    if role == "control":
        from gateway.control import run_control  # noqa: PLC0415 - the workers need none of it

        await run_control(
            config_path,
            workers=numbers[0],
            stop=stop,
            reload=reload,
            lines=lines,
            dropped=dropped,
        )
    else:
        from gateway.app import run_worker  # noqa: PLC0415 - the control process needs none of it

        await run_worker(
            config_path,
            number=numbers[0],
            workers=numbers[1],
            stop=stop,
            reload=reload,
            lines=lines,
            dropped=dropped,
        )


def _ending(stop: asyncio.Event) -> None:
    if stop.is_set():
        # The second time somebody is in a hurry; the journal makes it safe to just go.
        os._exit(1)
    stop.set()


def stop_with_supervisor(stop: asyncio.Event, *, within_s: float) -> None:
    """Set `stop` when whoever started us is gone, however that was; then we are, too, in time.

    Standard input is a pipe to which nothing is ever written; it ends when the supervisor does.
    """
    loop, pipe = asyncio.get_running_loop(), sys.stdin.fileno()

    def alone() -> None:
        loop.remove_reader(pipe)
        signal.alarm(math.ceil(within_s))  # nobody is left who would kill us: the kernel does
        stop.set()

    loop.add_reader(pipe, alone)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

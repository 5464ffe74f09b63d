"""A whole deployment for a test: real processes, real servers, the real command line.

async with Deployment.started(tmp_path, vendor=vendor) as tollgate:
    key = tollgate.new_key(credit_usd="10")
    client = tollgate.openai(key)
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import yaml
from openai import AsyncOpenAI
from redis.asyncio import Redis

from gateway import server_process
from gateway.config import load, pepper
from gateway.embedded import Urls, urls
from gateway.key_cache import KeyCache
from gateway.keys import issue, key_digester
from gateway.management import api_keys, organizations
from gateway.management import credits as credits_
from gateway.management.api_keys import KeyLabel, KeyTerms
from gateway.management.organizations import OrganizationTerms
from gateway.serve import stop_s_max
from gateway.settings import Shutdown
from ledger.clients import open_redis
from ledger.money import nanos

PEPPER = "a pepper of the test's, long enough"
START_S_MAX = 60.0
_SLOW_S = 20.0  # what a busy machine adds to a limit of the product's
# Price sheet P1: nano-USD per token, as USD per million.
P1 = {"input": "3", "output": "15", "cache_read": "0.30", "cache_write_5m": "3.75"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key and what it belongs to."""

    secret: str
    id: str
    organization_id: str


class Stores(NamedTuple):
    """What management functions work on."""

    pool: asyncpg.Pool
    redis: Redis
    cache: KeyCache
    digest: Callable[[str], bytes]


class Deployment:
    """One running `tollgate serve`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], *, workers: int) -> None:
        self.folder, self.config, self.workers = folder, dict(config), workers
        self.data = folder / "data"
        self.config_path = folder / "config.yaml"
        self.log_path = folder / "log.jsonl"
        self.servers = self.data  # the folder of the servers it works with
        self.source = Path.cwd()  # the tree that it runs from
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        folder: Path,
        *,
        vendor_port: int,
        workers: int = 1,
        changes: Mapping[str, Any] | None = None,
    ) -> AsyncIterator["Deployment"]:
        """A deployment whose only provider is the scripted vendor, with every price from P1."""
        deployment = cls(folder, configured(folder, vendor_port, changes or {}), workers=workers)
        deployment.write_config()
        try:
            await deployment.start()
            yield deployment
        finally:
            await deployment.stop()

    @classmethod
    def kept(cls, folder: Path, **started: Any) -> Iterator["Deployment"]:
        """The same (`started`: its arguments) for several tests, each with its own event loop."""
        deployment = cls.started(folder, **started)
        with asyncio.Runner() as runner:
            yield runner.run(deployment.__aenter__())
            runner.run(deployment.__aexit__(None, None, None))

    def write_config(self) -> None:
        """Put `config` where the processes read it."""
        draft = self.config_path.with_suffix(".new")
        draft.touch(mode=0o600)  # there are secrets in it
        draft.write_text(yaml.safe_dump(self.config))
        draft.replace(self.config_path)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        await self.until_ready()

    def launch(self) -> None:
        """Start it."""
        (self.data / "run" / "serve.json").unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gateway.cli"),
                    *("--config", str(self.config_path)),
                    *("serve", "--workers", str(self.workers)),
                ],
                stdout=log,
                stderr=log,
                cwd=self.source,
                env=self.environ(),
            )

    def environ(self) -> dict[str, str]:
        """What `serve` and its children find in their environment."""
        return {**os.environ, "PYTHONPATH": str(self.source)}  # noqa: TID251 - a child's

    async def until_ready(self, within_s: float = START_S_MAX) -> None:
        """Return once every process says that it can be sent calls."""
        async with asyncio.timeout(within_s):
            while not await self.is_ready():
                assert self._process is not None
                code = self._process.poll()
                assert code is None, (
                    f"serve ended with {code}:\n{self.log_path.read_text()[-4000:]}"
                )
                await asyncio.sleep(0.05)

    async def is_ready(self) -> bool:
        """What /readyz of the metrics listener says."""
        ports = self.ports
        if not ports:
            return False
        url = f"http://127.0.0.1:{ports['metrics']}/readyz"
        told = await asyncio.to_thread(_answered, url)
        said = told.get("processes", {})
        return bool(told.get("ready")) and all(
            said.get(f"worker-{number}", {}).get("ready") for number in range(self.workers)
        )

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        return await self.gone()

    async def gone(self, within_s: float = 0) -> int:
        """Wait until it has stopped; its exit code. After `within_s`, 0: its own, it is killed."""
        assert self._process is not None
        own_s = stop_s_max(Shutdown(**self.config["shutdown"])) + server_process.STOP_S_MAX
        try:
            return await asyncio.to_thread(self._process.wait, within_s or own_s + _SLOW_S)
        except subprocess.TimeoutExpired:
            self.kill()  # its children follow
            raise
        finally:
            self._process = None

    @property
    def ports(self) -> dict[str, int]:
        """The ports in use; empty before the start."""
        try:
            found: dict[str, int] = json.loads((self.data / "run" / "serve.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    @property
    def base_url(self) -> str:
        """What an SDK is pointed at."""
        return f"http://127.0.0.1:{self.ports['data']}/v1"

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    def tell(self, number: int) -> None:
        """Send a signal to the supervisor, as an operator would."""
        os.kill(self.pid, number)

    def pids(self, role: str) -> list[int]:
        """The processes of this deployment whose command begins so: "control", "worker"."""
        assert self._process is not None
        found = subprocess.run(
            ["/bin/ps", "--ppid", str(self._process.pid), "-o", "pid=,args="],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split(None, 1) for line in found.stdout.splitlines()]
        return [int(pid) for pid, command in lines if f"gateway.process {role}" in command]

    def kill(self) -> None:
        """kill -9 of the supervisor."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def kill_process(self, pid: int) -> None:
        """kill -9 one of its processes, and wait until it is dead."""
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(_SLOW_S):
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.005)

    def run(self, *arguments: str) -> str:
        """A command of `tollgate`, run to its end; its output."""
        done = self._command(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def run_failing(self, *arguments: str) -> str:
        """A command that must fail; what it says."""
        done = self._command(*arguments)
        assert done.returncode != 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stderr

    def _command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli", "--config", str(self.config_path), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.source,
            env=self.environ(),
        )

    async def new_organization(
        self, *, credit_usd: str = "10", allows_unpriced: bool = False
    ) -> str:
        """An organization with so much credit; its id."""
        terms = OrganizationTerms(name="test", allows_unpriced=allows_unpriced)
        async with self.stores() as stores:
            made = await organizations.create(stores.pool, stores.redis, terms)
            if nanos(credit_usd):
                grant = credits_.Grant(made.id, nanos(credit_usd), "test", "test")
                granted = await credits_.grant(stores.pool, stores.redis, grant)
                assert granted.is_usable
        return str(made.id)

    async def new_key(
        self, *, credit_usd: str = "10", organization_id: str | None = None, **terms: Any
    ) -> Key:
        """A key, of a new organization unless one is named; `terms` as `KeyTerms` has them."""
        owner = organization_id or await self.new_organization(credit_usd=credit_usd)
        new = issue(os.urandom(32))
        async with self.stores() as stores:
            made = await api_keys.create(
                stores.pool,
                stores.cache,
                organization_id=UUID(owner),
                label=KeyLabel(stores.digest(new.secret.reveal()), new.last4),
                terms=KeyTerms(**{"name": "test", **terms}),
            )
        return Key(secret=new.secret.reveal(), id=str(made.id), organization_id=owner)

    @asynccontextmanager
    async def stores(self) -> AsyncIterator[Stores]:
        """Connections to the deployment's stores, and what digests its keys."""
        redis = open_redis(self._url("redis"))
        digest = key_digester(pepper(load(self.config_path), ""))
        async with (
            redis,
            asyncpg.create_pool(self._url("postgres"), min_size=1, max_size=2) as pool,
        ):
            yield Stores(pool, redis, KeyCache(redis, time.time), digest)  # noqa: TID251 - a test's

    def openai(self, key: Key, **options: Any) -> AsyncOpenAI:
        """The official client, pointed here."""
        return AsyncOpenAI(
            base_url=self.base_url, api_key=key.secret, **{"max_retries": 0, **options}
        )

    async def wallet(self, organization_id: str) -> int:
        """base - spent, as Postgres has it, nano-USD."""
        connection = await self.postgres()
        try:
            free = await connection.fetchval(
                "SELECT base - spent FROM wallet WHERE organization_id = $1::uuid", organization_id
            )
        finally:
            await connection.close()
        return int(free)

    async def records(self, organization_id: str, *, count: int, within_s: float = 10) -> list[Any]:
        """The organization's records, once there are so many; oldest first."""
        connection = await self.postgres()
        try:
            async with asyncio.timeout(within_s):
                while True:
                    rows = await connection.fetch(
                        "SELECT * FROM usage_record WHERE organization_id = $1::uuid"
                        " ORDER BY call_id",
                        organization_id,
                    )
                    if len(rows) >= count:
                        return rows
                    await asyncio.sleep(0.05)
        finally:
            await connection.close()

    async def postgres(self) -> asyncpg.Connection:
        """A connection to the deployment's Postgres."""
        return await asyncpg.connect(self._url("postgres"))

    def redis(self) -> Redis:
        """A client of the deployment's Valkey, with every right."""
        return open_redis(self._url("redis", "admin_url"), answer_s=5.0)

    def _url(self, store: str, kind: str = "url") -> str:
        """Where a store is: the configured one, else the deployment's own."""
        configured = self.config.get(store, {})
        if "url" in configured:
            return str(configured.get(kind, configured["url"]))
        at = urls(self.servers)
        return at.postgres if store == "postgres" else at.redis if kind == "url" else at.redis_admin

    def metrics(self) -> str:
        """The metrics page."""
        url = f"http://127.0.0.1:{self.ports['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            return str(page.read().decode())


def _answered(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own listener
            told: dict[str, Any] = json.loads(answer.read())
            return told
    except OSError:
        return {}


def configured(folder: Path, vendor_port: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose only provider is the scripted vendor, with every price from P1."""
    config: dict[str, Any] = {
        "data_dir": str(folder / "data"),
        "listeners": {
            name: {"host": "127.0.0.1", "port": 0} for name in ("data", "control", "metrics")
        },
        "providers": {
            "vendor": {
                "kind": "openai",
                "base_url": f"http://127.0.0.1:{vendor_port}/v1",
                "allow_http": True,
                "api_key": "sk-platform-0123456789abcdef",
                "input_overhead_tokens": 0,
                "input_overhead_tokens_embeddings": 0,
            }
        },
        "models": {"*": {"targets": [{"provider": "vendor", "model": "*"}]}},
        "prices": [{"provider": "vendor", "model": "*", "usd_per_million": P1}],
        "shutdown": {"drain_delay_s": 0, "streams_s_max": 10},
    }
    return _merged(config, changes)


def shared(at: Urls, *, redis: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Settings that deployments which work together have in common: servers and pepper.

    `redis`: the settings of another one than the servers' own.
    """
    return {
        "postgres": {"url": at.postgres},
        "redis": redis or {"url": at.redis, "admin_url": at.redis_admin},
        "auth": {"pepper": PEPPER},
    }


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(base.get(name), dict):
            _merged(base[name], value)
        else:
            base[name] = value
    return base

"""The management API in this process, on a real socket, and people who use it.

async with open_office(postgres_url, redis_url, tmp_path) as office:
    ada = await office.signed_up("ada@example.com")
    answer = await ada.get("/me")
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.cookies import Morsel
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import asyncpg
import orjson
from argon2 import PasswordHasher
from redis.asyncio import Redis

from gateway import outward
from gateway.config import read
from gateway.key_cache import KeyCache
from gateway.keys import key_digester
from gateway.management import operators
from gateway.management.desk import Desk
from gateway.management.issuers import Issuers
from gateway.management.passwords import Passwords
from gateway.management.service import served
from gateway.payments.chosen import processor
from gateway.rest.rates import Rates
from gateway.sealing import sealer
from gateway.settings import Config, Listener
from ledger.clients import open_redis
from ledger.functions import Partition, install
from tests.gateway.strict_pool import StrictPool
from tests.gateway.tenancy import PEPPER

PASSWORD = "quarry lantern mosaic 17"
# As argon2id as the real one, at a hundredth of its price: hundreds of people sign up here.
CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
_PARTITIONS = 16


class Got(NamedTuple):
    """One answer."""

    status: int
    headers: Mapping[str, str]
    body: Any  # decoded JSON; None if there was nothing

    @property
    def code(self) -> str:
        """The code of a problem."""
        assert self.headers["Content-Type"] == "application/problem+json", self
        return str(self.body["code"])


class Browser:
    """One person at a browser, or a program: it keeps cookies, or a token."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url, self._http = url, http
        self.headers: dict[str, str] = {}

    def at(self, organization_id: str) -> Self:
        """The same person, who asks of this organization."""
        other = type(self)(self._url, self._http)
        other.headers = {**self.headers, "X-Organization-Id": organization_id}
        return other

    def by(self, url: str) -> Self:
        """The same person, who asks another control process."""
        other = type(self)(url, self._http)
        other.headers = self.headers
        return other

    def cookies(self) -> list[Morsel[str]]:
        """What it keeps."""
        return [*self._http.cookie_jar]

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Got:
        """One request; `data` is sent as it is."""
        sent = {**self.headers, **(headers or {})}
        if body is not None:
            data = orjson.dumps(body)
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        url = f"{self._url}/api/v1{path}"
        async with self._http.request(method, url, data=data, headers=sent) as answer:
            text = await answer.read()
            is_json = "json" in answer.headers.get("Content-Type", "")
            return Got(answer.status, answer.headers, orjson.loads(text) if is_json else None)

    async def get(self, path: str, **options: Any) -> Got:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Got:
        return await self.ask("POST", path, body, **options)

    async def patch(self, path: str, body: Any, **options: Any) -> Got:
        return await self.ask("PATCH", path, body, **options)

    async def put(self, path: str, body: Any, **options: Any) -> Got:
        return await self.ask("PUT", path, body, **options)

    async def delete(self, path: str, **options: Any) -> Got:
        return await self.ask("DELETE", path, **options)

    async def signs_in(self, email: str, password: str = PASSWORD, **more: Any) -> Got:
        """By password; from then on changes carry the token."""
        got = await self.post("/session", {"email": email, "password": password, **more})
        if got.status == 201:
            self.headers["X-CSRF-Token"] = got.body["csrf_token"]
        return got


@dataclass(slots=True)
class Hands:
    """A clock that is `ahead` of this machine's."""

    ahead: timedelta = timedelta()
    ahead_s: float = 0.0
    is_rushing: bool = False  # for limits of rates an hour passes between any two requests

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead  # noqa: TID251 - a test is its own composition root

    def monotonic_s(self) -> float:
        if self.is_rushing:
            self.ahead_s += 3600.0
        return time.monotonic() + self.ahead.total_seconds() + self.ahead_s


@dataclass(slots=True)
class Office:
    """The API, its stores, and a clock that can be turned on."""

    desk: Desk
    url: str
    clock: "Hands"
    browsers: list[aiohttp.ClientSession]

    @property
    def pool(self) -> asyncpg.Pool:
        return self.desk.pool

    @property
    def redis(self) -> Redis:
        return self.desk.redis

    def stranger(self) -> Browser:
        """Somebody who is not signed in."""
        http = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        self.browsers.append(http)
        return Browser(self.url, http)

    async def signed_up(self, email: str, *, password: str = PASSWORD) -> Browser:
        """A new person, verified and signed in."""
        browser = self.stranger()
        asked = {"email": email, "password": password, "name": email.partition("@")[0].title()}
        assert (await browser.post("/people", asked)).status == 202
        secret = await self.secret_mailed_to(email)
        assert (await browser.post("/verifications/confirm", {"secret": secret})).status == 200
        assert (await browser.signs_in(email, password)).status == 201
        return browser

    async def operator(self, email: str) -> Browser:
        """Somebody who runs the installation, signed in by the link of the command line."""
        desk, browser = self.desk, self.stranger()
        secret = await operators.make(
            desk.pool, email, digest=desk.digest, random_bytes=desk.random_bytes, now=desk.now()
        )
        got = await browser.post("/session/link", {"secret": secret.reveal()})
        assert got.status == 201, got
        browser.headers["X-CSRF-Token"] = got.body["csrf_token"]
        return browser

    async def mails_to(self, email: str) -> list[asyncpg.Record]:
        """What was written to somebody, the newest last."""
        return await self.pool.fetch(
            "SELECT * FROM mail WHERE recipient = lower($1) ORDER BY id", email
        )

    async def secret_mailed_to(self, email: str) -> str:
        """What stands behind the # of the newest mail's link."""
        text = (await self.mails_to(email))[-1]["text"]
        found = re.search(r"#(tg_\w+)", text)
        assert found, text
        return found[1]


@asynccontextmanager
async def open_office(
    postgres_url: str, redis_url: str, folder: Path, *, changes: str = ""
) -> AsyncIterator[Office]:
    """Serve it; `changes` is YAML."""
    config: Config = read(changes or "{}", {})
    config = replace(config, data_dir=folder)
    async with (
        StrictPool(postgres_url) as pool,
        outward.opened() as asking,
    ):
        redis = open_redis(redis_url)
        await install(redis)
        for number in range(_PARTITIONS):
            partition = Partition(redis, number)
            await partition.freeze(1)
            await partition.activate(1, 0)
        await pool.execute("UPDATE part SET generation = 1, state = 'active'")
        clock = Hands()
        desk = Desk(
            config=config,
            pool=pool,
            redis=redis,
            cache=KeyCache(redis, time.time),  # noqa: TID251 - a root
            now=clock.now,
            random_bytes=secrets.token_bytes,
            digest=key_digester(PEPPER),
            sealer=sealer(PEPPER, secrets.token_bytes),
            passwords=Passwords(CHEAP),
            rates=Rates(clock.monotonic_s),
            issuers=Issuers(config.management.sign_in, asking, clock.monotonic_s),
        )
        async with (
            processor(config.payments, pool, now=clock.now, site=desk.site) as till,
            served(Listener(port=0), desk := desk._replace(processor=till)) as port,
        ):
            office = Office(desk, f"http://127.0.0.1:{port}", clock, [])
            try:
                yield office
            finally:
                await asyncio.gather(*(browser.close() for browser in office.browsers))
                await redis.aclose()

"""A real issuer of OpenID Connect in a process of its own, and people who go there and come back.

with Elsewhere.running() as issuer:
    async with opened_with(issuer, postgres_url, redis_url, tmp_path) as office:
        got = await issuer.signs_in(office.stranger(), "ada")
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import aiohttp

from tests.gateway.management.office import Browser, Got, Office, open_office

NAME = "elsewhere"
ADA = {"email": "ada@example.com", "email_verified": True, "name": "Ada"}
# Who signs in there, and what the issuer says of them. What is wrong with some, their name says.
PEOPLE: Mapping[str, Mapping[str, Any]] = {
    "ada": ADA,
    "ADA": {**ADA, "email": "Ada@Example.com", "email_verified": "true"},
    "bob": {"email": "bob@example.com", "email_verified": True},
    "unverified": {**ADA, "email_verified": False},
    "silent": {"email": "ada@example.com"},
    "nobody": {},
    "another nonce": {**ADA, "nonce": "x" * 43},
    "another audience": {**ADA, "aud": "somebody else"},
    "two audiences": {**ADA, "aud": ["us", "somebody else"]},
    "two audiences, ours": {**ADA, "aud": ["us", "somebody else"], "azp": "us"},
    "another issuer": {**ADA, "iss": "https://issuer.example"},
    "expired": {**ADA, "exp": 1_700_000_000},
    "from the future": {**ADA, "iat": 4_000_000_000},
    "another token": {**ADA, "at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
}


@dataclass
class Elsewhere:
    """The issuer."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    @contextmanager
    def running(cls, port: int = 0) -> Iterator[Self]:
        """Until the block is left; with the same port, it has other keys the next time."""
        port = port or _free_port()
        people = [json.dumps({"sub": name, **claims}) for name, claims in PEOPLE.items()]
        arguments = [word for one in people for word in ("--user-claims", one)]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), *arguments],
                stdout=log,
                stderr=log,
            )
            try:
                _wait_for(process, port)
                yield cls(port, process)
            finally:
                process.kill()
                process.wait()

    async def visited(self, url: str, who: str) -> dict[str, str]:
        """What stands in the URL that somebody is sent back to."""
        async with (
            aiohttp.ClientSession() as browser,
            browser.post(url, data={"sub": who}, allow_redirects=False) as answer,
        ):
            assert answer.status == 302, await answer.text()
            return dict(parse_qsl(urlsplit(answer.headers["Location"]).query))

    async def comes_back(
        self, browser: Browser, who: str, path: str = "/session/issuer"
    ) -> dict[str, str]:
        """Somebody goes there from this browser: what they come back with."""
        got = await browser.post(f"{path}/challenges", {"issuer": NAME})
        assert got.status == 201, got
        returned = await self.visited(got.body["url"], who)
        return {"issuer": NAME, "code": returned["code"], "state": returned["state"]}

    async def signs_in(self, browser: Browser, who: str) -> Got:
        """Somebody signs in there, and so here."""
        got = await browser.post("/session/issuer", await self.comes_back(browser, who))
        if got.status == 201:
            browser.headers["X-CSRF-Token"] = got.body["csrf_token"]
        return got

    async def links(self, browser: Browser, who: str) -> Got:
        """Somebody who is signed in links who they are there."""
        back = await self.comes_back(browser, who, "/me/identities")
        return await browser.post("/me/identities", back)


@asynccontextmanager
async def opened_with(
    issuer: Elsewhere, postgres_url: str, redis_url: str, folder: Path, **settings: Any
) -> AsyncIterator[Office]:
    """The API at which people sign in there; `settings` are those of the issuer."""
    more = settings.pop("management", {})
    one = {"name": NAME, "issuer": issuer.url, "client_id": "us", "client_secret": "s3cret & more"}
    said = {"management": {"sign_in": [{**one, **settings}], **more}}
    async with open_office(postgres_url, redis_url, folder, changes=json.dumps(said)) as office:
        yield office


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the issuer ended as it started"
        assert time.monotonic() < deadline_s, "the issuer does not listen"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return

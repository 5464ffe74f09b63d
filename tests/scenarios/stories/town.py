"""A deployment with people around it: real processes, real mail, a vendor on a socket.

async with open_town(folder, vendor) as town:
    (ada,) = await town.sign_up("Ada")
    acme = await ada.founds("Acme", preset="studio")
    key = await acme.makes_key("maps")
    await town.calls(key.secret, usd=2)
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from openai import APIStatusError, AsyncOpenAI
from openai.types.chat import ChatCompletion

from gateway.serve import reserve_port
from tests.gateway.management.office import Browser
from tests.scenarios.deployment import Deployment, configured
from tests.scenarios.stories.letter_box import LetterBox, open_letter_box, text_of
from tests.scenarios.stories.patience import until
from tests.scenarios.stories.people import Person, nanos_of
from tests.vendor import Vendor

# A thousand tokens of output are a dollar, and what is asked costs nothing: easily told.
_TOKENS_PER_USD = 1_000
_PRICE = {"input": "0", "output": "1000"}
_ENDLESS = 10_000_000  # tokens; a call ends at the limit that it sets itself


class Town:
    """Everything that a story happens in."""

    def __init__(
        self, tollgate: Deployment, post: LetterBox, site: str, stack: AsyncExitStack
    ) -> None:
        self.tollgate, self.post, self.site = tollgate, post, site
        self.question = "Tell me a long story."  # what is said must be stored nowhere
        self._stack = stack
        self._operator: Person
        self._addresses: Iterator[int] = itertools.count(1)

    async def stranger(self, name: str) -> Person:
        """Somebody at a browser of their own, at an address of their own."""
        http = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        await self._stack.enter_async_context(http)
        browser = Browser(self.site, http)
        # As the proxy before the deployment says it.
        browser.headers["X-Forwarded-For"] = f"203.0.113.{next(self._addresses)}"
        return Person(name, f"{name.lower()}@example.com", browser, self.post)

    async def sign_up(self, *names: str) -> list[Person]:
        """New people, who have opened the link in their mail and signed in."""
        return list(await asyncio.gather(*(self._signed_up(name) for name in names)))

    async def program(self, of: Person, scopes: Sequence[str]) -> Person:
        """One that acts as somebody, as far as the scopes of its token go."""
        made = await of.does("POST", "/me/tokens", {"name": "program", "scopes": scopes})
        program = await self.stranger(of.name)
        program.browser.headers["Authorization"] = f"Bearer {made['secret']}"
        return program

    async def gives(self, whom: Person, *, usd: float, because: str = "a welcome") -> None:
        """Credits from the operator, to the organization that somebody is at."""
        given = {"amount_nanos": nanos_of(usd), "reason": because}
        await self._operator.does("POST", f"{await _operated(whom)}/credits", given)

    async def transfers(self, source: Person, target: Person, *, usd: float) -> None:
        """Credits from one organization to another, by the operator."""
        asked = {
            "from_organization_id": (await source.sees("/organization"))["id"],
            "to_organization_id": (await target.sees("/organization"))["id"],
            "amount_nanos": nanos_of(usd),
            "reason": "as they asked",
        }
        await self._operator.does("POST", "/operator/transfers", asked)

    async def operates(self, whom: Person, change: Mapping[str, Any]) -> None:
        """A change by the operator, to the organization that somebody is at."""
        await self._operator.does("PATCH", await _operated(whom), change)

    def openai(self, secret: str) -> AsyncOpenAI:
        """The official client with this key."""
        return AsyncOpenAI(base_url=self.tollgate.base_url, api_key=secret, max_retries=0)

    async def calls(self, secret: str, *, usd: float, model: str = "writer") -> ChatCompletion:
        """One chat that costs exactly so much."""
        async with self.openai(secret) as client:
            return await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": self.question}],
                max_tokens=round(usd * _TOKENS_PER_USD),
            )

    async def works(self, secret: str) -> None:
        """The key is taken, within a second."""

        async def taken() -> bool:
            return await self._refusal(secret) is None

        await until(taken)

    async def is_refused(self, secret: str, code: str, *, usd: float = 0) -> None:
        """With this error, within a second; a call that costs so much, or one that costs nothing.

        One that costs something might be let in before: only for what the gateways know already.
        """

        async def refused() -> bool:
            return await self._refusal(secret, usd) == code

        await until(refused)

    async def _refusal(self, secret: str, usd: float = 0) -> str | None:
        """The code that the key is answered with; None: it is taken."""
        try:
            if usd:
                await self.calls(secret, usd=usd)
            else:
                async with self.openai(secret) as client:
                    await client.models.list()
        except APIStatusError as error:
            return error.code
        return None

    async def warns(self, *whom: Person, about: str, of: str) -> None:
        """One mail each, about this, in which this stands; nobody else has one."""
        for person in whom:
            assert of in text_of(await self.post.letter(person.email, about))
        warned = sorted(letter["To"] for letter in self.post.letters_about(about))
        assert warned == sorted(person.email for person in whom)

    async def is_whole(self, reader: Person | None = None) -> None:
        """Not a nano-dollar and no line of the past differs from what the records say.

        `reader`: somebody who may read their organization's audit log.
        """
        if reader is not None:
            assert (await reader.sees("/audit-log/check"))["is_whole"]
        said = await asyncio.to_thread(self.tollgate.run, "verify")
        assert said == "No difference.\n", said

    async def _signed_up(self, name: str) -> Person:
        person = await self.stranger(name)
        await person.signs_up()
        await person.follows("Verify your e-mail address", "/verifications/confirm")
        await person.signs_in()
        return person

    async def begin(self) -> None:
        """The operator comes first, by the link that the command line prints."""
        root = await self.stranger("Root")
        printed = await asyncio.to_thread(self.tollgate.run, "operator", root.email)
        secret = printed.partition("#")[2].split()[0]
        got = await root.does("POST", "/session/link", {"secret": secret})
        root.browser.headers["X-CSRF-Token"] = got["csrf_token"]
        self._operator = root


async def _operated(whom: Person) -> str:
    """Where the operator finds the organization that somebody is at."""
    return f"/operator/organizations/{(await whom.sees('/organization'))['id']}"


@asynccontextmanager
async def open_town(
    folder: Path, vendor: Vendor, changes: Mapping[str, Any] | None = None
) -> AsyncIterator[Town]:
    """Start it; everybody leaves before it stops."""
    await vendor.script("", input_tokens=0, output_tokens=_ENDLESS, deltas=1)
    async with AsyncExitStack() as stack:
        post = stack.enter_context(open_letter_box())
        port = reserve_port("127.0.0.1", stack)
        site = f"http://localhost:{port}"
        config = configured(folder, vendor.port, changes or {})
        config["listeners"]["control"]["port"] = port
        config["management"] = {"public_url": site, "proxies": 1, "private_webhooks": True}
        config["mail"] = {"smtp_url": post.url, "sender": "Tollgate <gate@example.com>"}
        config["payments"] = {"processor": "sandbox"}
        config["prices"] = [{"provider": "vendor", "model": "*", "usd_per_million": _PRICE}]
        tollgate = Deployment(folder, config, workers=1)
        tollgate.write_config()
        stack.push_async_callback(tollgate.stop)
        await tollgate.start()
        async with AsyncExitStack() as visitors:
            town = Town(tollgate, post, site, visitors)
            await town.begin()
            yield town

"""Several machines of one installation, and people who use its management API over HTTP only.

async with Installation.started(folder, vendor, workers=(2, 1)) as office:
    root = await office.operator("root@example.com")
    ada = await office.signed_up("ada@example.com")
"""

import asyncio
import email
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from gateway.embedded import Embedded
from tests.gateway.management.office import PASSWORD, Browser, Got
from tests.scenarios.caller import Caller
from tests.scenarios.deployment import Deployment, Key, shared
from tests.scenarios.workers import lines_to_each
from tests.vendor import Vendor

_MAILED_S_MAX = 20.0
_SECRET = re.compile(r"#(tg_\w+)")
# So that what nobody ends is swept within the time to drain.
_LEDGER: dict[str, Any] = {"partitions": 4, "hold_lease_s": 4, "hold_renew_s": 1}


class Team(NamedTuple):
    """An organization and its founder at it."""

    id: str
    name: str
    owner: Browser


class Installation:
    """Machines on one Postgres and one Valkey, each with a control process of its own."""

    def __init__(self, machines: Sequence[Deployment], stack: AsyncExitStack) -> None:
        self.machines = machines
        self._stack = stack
        self._people = 0
        self._mails: dict[Path, EmailMessage] = {}
        self._opened = Counter[str]()  # mails with links, by recipient

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        folder: Path,
        vendor: Vendor,
        *,
        workers: Sequence[int],
        changes: Mapping[str, Any] | None = None,
    ) -> AsyncIterator["Installation"]:
        """A machine for each of `workers`, with so many of them."""
        await vendor.forget()
        async with AsyncExitStack() as stack:
            stores = await stack.enter_async_context(Embedded(folder / "stores"))
            settings = {
                **shared(stores.urls),
                "ledger": _LEDGER,
                # Each person comes from an address of their own.
                "management": {"proxies": 1},
                **(changes or {}),
            }
            machines = []
            for number, count in enumerate(workers):
                home = folder / f"machine-{number}"
                home.mkdir()
                machine = Deployment.started(
                    home, vendor_port=vendor.port, workers=count, changes=settings
                )
                machines.append(await stack.enter_async_context(machine))
            yield cls(machines, stack)

    def control(self, number: int) -> str:
        """Where the management API of a machine is."""
        return f"http://127.0.0.1:{self.machines[number].ports['control']}"

    async def stranger(self, *, at: int = 0) -> Browser:
        """Somebody who is not signed in, at the API of this machine."""
        self._people += 1
        http = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        await self._stack.enter_async_context(http)
        browser = Browser(self.control(at), http)
        browser.headers["X-Forwarded-For"] = f"10.{self._people // 250}.{self._people % 250}.1"
        return browser

    async def signed_up(self, address: str, *, at: int = 0) -> Browser:
        """A new person, verified and signed in."""
        browser = await self.stranger(at=at)
        asked = {"email": address, "password": PASSWORD, "name": address.partition("@")[0]}
        expect(await browser.post("/people", asked), 202)
        secret = await self.secret_mailed_to(address)
        expect(await browser.post("/verifications/confirm", {"secret": secret}), 200)
        expect(await browser.signs_in(address), 201)
        return browser

    async def operator(self, address: str, *, at: int = 0) -> Browser:
        """Who runs the installation, signed in by the link of the command line."""
        said = await asyncio.to_thread(self.machines[at].run, "operator", address)
        found = _SECRET.search(said)
        assert found, said
        browser = await self.stranger(at=at)
        got = expect(await browser.post("/session/link", {"secret": found[1]}), 201)
        browser.headers["X-CSRF-Token"] = got.body["csrf_token"]
        return browser

    async def founded(self, founder: Browser, name: str, preset: str) -> Team:
        """A new organization."""
        got = expect(await founder.post("/organizations", {"name": name, "preset": preset}), 201)
        return Team(got.body["id"], name, founder.at(got.body["id"]))

    async def joined(self, team: Team, browser: Browser, address: str, role: str) -> Browser:
        """Somebody who was invited by mail, and accepted."""
        expect(await team.owner.post("/invitations", {"email": address, "role": role}), 201)
        secret = await self.secret_mailed_to(address)
        expect(await browser.post("/invitations/acceptance", {"secret": secret}), 200)
        return browser.at(team.id)

    async def secret_mailed_to(self, address: str) -> str:
        """What stands behind the # of the next mail's link that was not looked at yet."""
        wanted = self._opened[address]
        self._opened[address] += 1
        async with asyncio.timeout(_MAILED_S_MAX):
            while len(links := self._links_to(address)) <= wanted:
                await asyncio.sleep(0.05)
        return links[wanted]

    def mails_to(self, address: str) -> list[EmailMessage]:
        """What was sent there, the oldest first; each control process sends some."""
        for machine in self.machines:
            for path in (machine.data / "outbox").glob("*.eml"):
                if path not in self._mails:
                    said = email.message_from_bytes(path.read_bytes(), policy=default)
                    self._mails[path] = said
        sent = [said for _, said in sorted(self._mails.items(), key=lambda item: item[0].name)]
        return [said for said in sent if said["To"] == address]

    def _links_to(self, address: str) -> list[str]:
        """The secrets mailed there, the oldest first."""
        bodies = [said.get_body(("plain",)) for said in self.mails_to(address)]
        return [
            secret
            for body in bodies
            if body is not None
            for secret in _SECRET.findall(body.get_content())
        ]


def expect(got: Got, status: int) -> Got:
    """The answer, which has this status."""
    __tracebackhide__ = True
    assert got.status == status, got
    return got


async def new_key(browser: Browser, **terms: Any) -> Key:
    """A key that who asks makes in the organization they are at."""
    got = expect(await browser.post("/api-keys", {"name": "key", **terms}), 201)
    at = browser.headers["X-Organization-Id"]
    return Key(secret=got.body["secret"], id=got.body["key"]["id"], organization_id=at)


async def credited(operator: Browser, organization_id: str, nanos: int) -> Got:
    """Credit that the operator grants."""
    path = f"/operator/organizations/{organization_id}/credits"
    return expect(await operator.post(path, {"amount_nanos": nanos, "reason": "a test"}), 201)


@asynccontextmanager
async def lines_in(office: Installation, count: int) -> AsyncIterator[list[list[Caller]]]:
    """So many connections to each worker of every machine."""
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(lines_to_each(machine, count))
            for machine in office.machines
        ]
        yield [lines for machine in found for lines in machine]

"""localstripe in a process of its own, and a wire to it that can lose answers.

localstripe plays cards, SEPA, refunds and signed events. It has no Checkout and no bank accounts of
the US, and it takes no notice of an Idempotency-Key.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

SECRET_KEY, PUBLISHABLE_KEY = "sk_test_0123456789", "pk_test_0123456789"
WEBHOOK_SECRET = "whsec_0123456789abcdef"
GOOD_CARD, BAD_CARD, ASKING_CARD = "4242424242424242", "4000000000000341", "4000002500003155"
GOOD_IBAN, BAD_IBAN = "DE89370400440532013000", "DE62370400440532013001"


class Localstripe:
    """The server, as a browser and a bookkeeper see it."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url, self._http = url, http

    async def ask(self, method: str, path: str, body: Any = None, key: str = SECRET_KEY) -> Any:
        """One request to its API; the answer must be good."""
        headers = {"Authorization": f"Bearer {key}"}
        async with self._http.request(method, self.url + path, json=body, headers=headers) as got:
            said = await got.json()
            assert got.status == 200, said
            return said

    async def enters(self, client_secret: str, **details: Any) -> None:
        """What Stripe.js does in the browser: the number goes to Stripe, and nowhere else."""
        setup = client_secret.partition("_secret_")[0]
        if "iban" in details:
            data = {"type": "sepa_debit", "sepa_debit": {"iban": details["iban"]}}
        else:
            card = {"number": details["card"], "exp_month": 12, "exp_year": 2040, "cvc": "123"}
            data = {"type": "card", "card": card}
        body = {
            "key": PUBLISHABLE_KEY,
            "client_secret": client_secret,
            "payment_method_data": {**data, "billing_details": {"name": "Ada"}},
        }
        await self.ask("POST", f"/v1/setup_intents/{setup}/confirm", body)

    async def charges(self) -> list[int]:
        """The cents of every charge that went well."""
        found = (await self.ask("GET", "/v1/charges?limit=100"))["data"]
        return [one["amount"] for one in found if one["status"] == "succeeded"]

    async def refunds(self) -> list[int]:
        """The cents of every refund."""
        return [one["amount"] for one in (await self.ask("GET", "/v1/refunds?limit=100"))["data"]]

    async def tells(self, url: str) -> None:
        """Send events there from now on."""
        body = {"url": url, "secret": WEBHOOK_SECRET}
        async with self._http.post(f"{self.url}/_config/webhooks/ours", json=body) as got:
            assert got.status == 200


@asynccontextmanager
async def localstripe() -> AsyncIterator[Localstripe]:
    """A fresh one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-m", "localstripe", "--from-scratch"),
        *("--port", str(port)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _listens(port)
        async with aiohttp.ClientSession() as http:
            yield Localstripe(f"http://127.0.0.1:{port}", http)
    finally:
        process.kill()
        await process.wait()


async def _listens(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                await writer.wait_closed()
                return


class Wire:
    """Between Tollgate and Stripe: it may lose the answer to what is asked."""

    def __init__(self, there: str, http: aiohttp.ClientSession) -> None:
        self._there, self._http = there, http
        self.url = ""
        self.loses: set[tuple[str, str]] = set()  # method and path
        self.keys: list[str] = []  # every Idempotency-Key that was sent

    async def carry(self, request: web.Request) -> web.StreamResponse:
        """There and back."""
        body = await request.read()
        kept = {"Authorization", "Content-Type", "Idempotency-Key"}
        headers = {name: value for name, value in request.headers.items() if name in kept}
        self.keys += [value for name, value in headers.items() if name == "Idempotency-Key"]
        url = self._there + str(request.rel_url)
        async with self._http.request(request.method, url, data=body, headers=headers) as got:
            answer = await got.read()
            if (request.method, request.path) in self.loses:
                assert request.transport is not None
                request.transport.abort()
            return web.Response(status=got.status, body=answer, content_type="application/json")


@asynccontextmanager
async def wire(there: str) -> AsyncIterator[Wire]:
    """One that loses nothing at first."""
    async with aiohttp.ClientSession() as http:
        made = Wire(there, http)
        application = web.Application()
        application.router.add_route("*", "/{rest:.*}", made.carry)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield made
        finally:
            await runner.cleanup()


def settings(url: str) -> str:
    """config.yaml for a Stripe at this URL."""
    return (
        "payments: {processor: stripe, eur_per_usd: 0.9, stripe: {"
        f"secret_key: {SECRET_KEY}, publishable_key: {PUBLISHABLE_KEY},"
        f" webhook_secret: {WEBHOOK_SECRET}, api_url: '{url}'}}}}"
    )

"""A program that receives webhooks on a real socket and checks them as its authors would."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook


class Receiver:
    """It keeps what it is told, and answers with the next of `answers`, then 200."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], str]] = []

    async def hear(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), (await request.read()).decode()))
        status = self.answers.pop(0) if self.answers else 200
        return web.Response(status=status, headers={"Location": self.url + "/elsewhere"})

    def verified(self, secret: str) -> list[Any]:
        """Every message, checked with the official library."""
        return [Webhook(secret).verify(body, headers) for headers, body in self.got]

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """It listens."""
    receiver, application = Receiver(), web.Application()
    application.router.add_post("/{path:.*}", receiver.hear)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()

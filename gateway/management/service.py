"""The management API, put together: its routes, its document and a page to read that on."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from html import escape
from importlib.metadata import version

import orjson
from aiohttp import web

from gateway.management.answered import AnsweredOnce
from gateway.management.desk import Desk
from gateway.management.guard import Doorman
from gateway.management.routes import ROUTES
from gateway.rest.openapi import document
from gateway.rest.rates import Rates
from gateway.rest.route import PREFIX
from gateway.rest.server import Api
from gateway.settings import Listener


@asynccontextmanager
async def served(
    listener: Listener, desk: Desk, *, monotonic_s: Callable[[], float]
) -> AsyncIterator[int]:
    """Serves until the block is left; gives the port."""
    application = web.Application(client_max_size=0)
    said = document(ROUTES, release=version("tollgate"))
    text = orjson.dumps(said, option=orjson.OPT_INDENT_2)
    page = _page(said)

    async def openapi(_request: web.Request) -> web.Response:
        return web.Response(body=text, content_type="application/json")

    async def readable(_request: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    application.router.add_route("GET", f"{PREFIX}/openapi.json", openapi)
    application.router.add_route("GET", f"{PREFIX}/docs", readable)
    Api(
        ROUTES,
        desk,
        guard=Doorman(desk),
        once=AnsweredOnce(desk),
        rates=Rates(monotonic_s),
        is_secure=desk.site.startswith("https://"),
    ).add_to(application)
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, listener.host, listener.port, backlog=128, reuse_port=True)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _page(said: dict) -> str:  # type: ignore[type-arg]
    return escape(str(said["info"]["title"]))

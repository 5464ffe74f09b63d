"""A listener that aiohttp serves an application on, and which tells nobody what it is made of.

The data plane's is another: gateway/proxy/server.py.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiohttp import hdrs, web

from gateway.settings import Listener


class _Discreet(web.Request):
    """A request whose answer names neither Python nor aiohttp, nor their releases.

    Here, as a signal of the application is not sent for what aiohttp answers by itself.
    """

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.popall(hdrs.SERVER, None)
        await super()._prepare_hook(response)


@asynccontextmanager
async def listening(
    listener: Listener, application: web.Application, *, backlog: int
) -> AsyncIterator[int]:
    """Serves until the block is left; gives the port. `backlog`: connections not accepted yet."""
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        server: Any = runner.server
        server.request_factory = partial(server.request_factory, _cls=_Discreet)
        # The supervisor holds the port for us, so that a restart cannot lose it.
        site = web.TCPSite(runner, listener.host, listener.port, backlog=backlog, reuse_port=True)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()

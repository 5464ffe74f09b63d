"""A listener that aiohttp serves an application on, and which tells nobody what it is made of.

The data plane's is another: gateway/proxy/server.py.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from gateway.errors import BadRequest, Internal
from gateway.rest.problem import CONTENT_TYPE, problem_of
from gateway.settings import Listener


class _Discreet(web.Request):
    """A request whose answer names neither Python nor aiohttp, nor their releases.

    Here, as a signal of the application is not sent for what aiohttp answers by itself.
    """

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.popall(hdrs.SERVER, None)
        await super()._prepare_hook(response)


class _Connection(web.RequestHandler):
    """One on which what is no HTTP, or too long a head, is answered as every other mistake."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # it tells the log
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            text = "That is no HTTP request that can be read here, or its head is too long."
            body = problem_of(BadRequest(text, code="bad_http"))
            status = HTTPStatus.BAD_REQUEST
        else:
            text = "Something went wrong here; it is in the log."
            body = problem_of(Internal(text, code="internal_error"))
        response = web.Response(status=status, body=body, content_type=CONTENT_TYPE)
        response.force_close()
        return response


class _Server(web.Server):
    """Makes these of what is accepted."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """Runs an application on them."""

    async def _make_server(self) -> web.Server:
        made: Any = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=partial(made.request_factory, _cls=_Discreet),
            loop=made._loop,  # noqa: SLF001 - of another of its class
            **made._kwargs,  # noqa: SLF001 - as above
        )


@asynccontextmanager
async def listening(
    listener: Listener, application: web.Application, *, backlog: int
) -> AsyncIterator[int]:
    """Serves until the block is left; gives the port. `backlog`: connections not accepted yet."""
    runner = _Runner(application, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        # The supervisor holds the port for us, so that a restart cannot lose it.
        site = web.TCPSite(runner, listener.host, listener.port, backlog=backlog, reuse_port=True)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()

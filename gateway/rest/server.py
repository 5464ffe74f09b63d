"""The management API on aiohttp: a request is allowed, decoded, handled, answered.

Everything a route does not say is refused here, so that no handler has to: other members in a body,
other methods, other types, callers that its access does not name.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import asyncpg
import msgspec
from aiohttp import web
from uuid_utils import uuid7

from gateway.addresses import address_of
from gateway.errors import (
    BadRequest,
    GatewayError,
    Internal,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from gateway.rest import problem, reading
from gateway.rest.caller import Caller, Knock
from gateway.rest.rates import ASKING, GUESSING, WRITING, Rates
from gateway.rest.route import PREFIX, Answer, Asked, Download, Nothing, Route
from ledger.postgres import AWAY

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 256 * 1024
SESSION_COOKIE = "tollgate_session"
JSON = "application/json"
_YEAR_S = 365 * 24 * 3600
_SAFE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Somebody else has it, or two wait for each other and Postgres chose who goes on.
_BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
_encode = msgspec.json.Encoder().encode


class Given(NamedTuple):
    """An answer as it is sent, and sent again for the same Idempotency-Key."""

    status: int
    body: bytes
    version: int | None = None


class Guard(Protocol):
    """Says who asks; raises `Unauthenticated`, `Forbidden` or `NotFound` if they may not."""

    async def __call__(self, route: Route, knock: Knock) -> Caller: ...


class Once(Protocol):
    """Does a thing once for each key of a caller, and gives its answer again."""

    async def __call__(
        self,
        asked: Asked[Any, Any],
        route: Route,
        body: bytes,
        work: Callable[[], Awaitable[Given]],
    ) -> Given: ...


class Api:
    """The routes, served."""

    def __init__(
        self,
        routes: Sequence[Route],
        parts: object,
        *,
        guard: Guard,
        once: Once,
        rates: Rates,
        is_secure: bool,
        proxies: int,
    ) -> None:
        self._routes, self._parts = routes, parts
        self._guard, self._once, self._rates = guard, once, rates
        self._is_secure, self._proxies = is_secure, proxies

    def add_to(self, application: web.Application) -> None:
        """Serve them there, and whatever else is below the prefix with a problem."""
        methods: dict[str, set[str]] = {}
        for route in self._routes:
            methods.setdefault(route.path, set()).add(route.method)
            application.router.add_route(route.method, PREFIX + route.path, self._handler(route))
        for path, known in methods.items():
            application.router.add_route("*", PREFIX + path, _refusal(frozenset(known)))
        application.router.add_route("*", PREFIX + "{rest:(/.*)?}", _nothing_here)

    def _handler(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            request_id = str(uuid7())
            try:
                return await self._answer(route, request, request_id)
            except GatewayError as error:
                return problem_response(error, request_id)
            except (*_BUSY, *AWAY) as error:
                said = {"route": route.name, "reason": type(error).__name__}
                log.warning("the management API cannot answer", extra={"cause": "postgres", **said})
                text = "The database does not answer at the moment. Nothing was done; try again."
                return problem_response(Unavailable(text, code="unavailable"), request_id)
            except Exception:  # a bug in one handler must not be the end of the control process
                log.exception("bug in the management API", extra={"route": route.name})
                text = f"Something went wrong here; it is in the log under {request_id}."
                return problem_response(Internal(text, code="internal_error"), request_id)

        return handle

    async def _answer(
        self, route: Route, request: web.Request, request_id: str
    ) -> web.StreamResponse:
        knock = _knock(request, self._proxies)
        self._rates.take("address", knock.address, ASKING)
        if route.is_guessed:
            self._rates.take("guesses", knock.address, GUESSING)
        caller = await self._guard(route, knock)
        if route.is_write:
            self._rates.take("writes", caller.actor or knock.address, WRITING)
        data = await _body(request, route)
        asked: Asked[Any, Any] = Asked(
            caller=caller,
            path=request.match_info,
            query=reading.query_in(_pairs(request), route.query),
            body=reading.body_in(data or b"{}", route.body or Nothing),
            if_match=reading.version_in(request.headers),
            key=reading.key_in(request.headers),
            cookies=request.cookies,
            agent=knock.agent,
        )
        if route.media:
            answer: Answer = await route.handle(self._parts, asked)
            assert answer.download is not None, "a route with media answers a file"
            return await _sent(request, answer.download, request_id)
        if route.needs_key and asked.key is None:
            raise BadRequest(
                "Send an Idempotency-Key of your own: if the answer is lost, ask again under it.",
                code="idempotency_key_required",
            )
        cookies: dict[str, str | None] = {}

        async def work() -> Given:
            answer = await route.handle(self._parts, asked)
            cookies.update(answer.cookies)
            body = b"" if answer.body is None else _encode(answer.body)
            return Given(route.status if body else 204, body, answer.version)

        if route.is_once and asked.key is not None:
            given = await self._once(asked, route, data, work)
        else:
            given = await work()
        response = _response(given, request_id)
        for name, value in cookies.items():
            self._set(response, name, value)
        return response

    def _set(self, response: web.Response, name: str, value: str | None) -> None:
        if value is None:
            response.del_cookie(name, path="/")
            return
        response.set_cookie(
            name,
            value,
            path="/",
            max_age=_YEAR_S,  # the session itself ends sooner
            httponly=True,
            samesite="Lax",
            secure=self._is_secure,
        )


async def _sent(request: web.Request, file: Download, request_id: str) -> web.StreamResponse:
    """Send the file as it is made. One that breaks off ends the connection before its end."""
    first = await anext(file.chunks, b"")  # what fails here can still be told
    response = web.StreamResponse(
        headers={
            **_SAFE,
            "Content-Type": file.media,
            "Content-Disposition": f'attachment; filename="{file.name}"',
            "X-Request-Id": request_id,
        }
    )
    await response.prepare(request)
    await response.write(first)
    try:
        async for chunk in file.chunks:
            await response.write(chunk)
    except ConnectionError:
        pass  # nobody is there who could read on
    except (*_BUSY, *AWAY) as error:
        log.warning("a file broke off", extra={"cause": "postgres", "reason": str(error)})
    except Exception:  # as at the edge of every request
        log.exception("bug in the management API", extra={"path": request.path})
    else:
        await response.write_eof()
        return response
    if request.transport is not None:
        request.transport.abort()  # an orderly end would look like the file's own
    return response


def problem_response(error: GatewayError, request_id: str) -> web.Response:
    """The error as its document."""
    return web.Response(
        status=error.status_now,
        body=problem.problem_of(error),
        headers={
            **_SAFE,
            **error.headers,
            "Content-Type": problem.CONTENT_TYPE,
            "X-Request-Id": request_id,
        },
    )


def _response(given: Given, request_id: str) -> web.Response:
    headers = {**_SAFE, "X-Request-Id": request_id}
    if given.body:
        is_error = given.status >= 400  # noqa: PLR2004 - a refusal, given again
        headers["Content-Type"] = problem.CONTENT_TYPE if is_error else JSON
    if given.version is not None:
        headers["ETag"] = f'"{given.version}"'
    return web.Response(status=given.status, body=given.body or None, headers=headers)


def _refusal(known: frozenset[str]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def refuse(request: web.Request) -> web.Response:
        allowed = ", ".join(sorted(known))
        error = MethodNotAllowed(
            f"{request.method} is not possible here; {allowed} is.",
            code="method_not_allowed",
            headers={"Allow": allowed},
        )
        return problem_response(error, str(uuid7()))

    return refuse


async def _nothing_here(_request: web.Request) -> web.Response:
    # The path is not repeated: a secret may have got into it.
    error = NotFound(
        f"There is nothing under this path; {PREFIX}/openapi.json lists what there is.",
        code="unknown_url",
    )
    return problem_response(error, str(uuid7()))


def _knock(request: web.Request, proxies: int) -> Knock:
    headers = request.headers
    forwarded = ",".join(headers.getall("X-Forwarded-For", [])) or None
    return Knock(
        address=address_of(request.remote or "", forwarded, proxies=proxies)[:100],
        agent=headers.get("User-Agent", "")[:300],
        authorization=headers.get("Authorization"),
        cookie=request.cookies.get(SESSION_COOKIE),
        csrf=headers.get("X-CSRF-Token"),
        organization=headers.get("X-Organization-Id"),
        path=request.match_info,
    )


def _pairs(request: web.Request) -> Iterator[tuple[str, str]]:
    try:
        yield from parse_qsl(
            request.query_string, keep_blank_values=True, strict_parsing=bool(request.query_string)
        )
    except ValueError as error:
        raise BadRequest("The query string cannot be read.", code="invalid_query") from error


async def _body(request: web.Request, route: Route) -> bytes:
    """What it is asked with; empty where a route takes nothing."""
    if route.body is None:
        if request.can_read_body and await request.content.read(1):
            raise BadRequest("This takes no body.", code="invalid_body")
        return b""
    if request.content_type != JSON:
        raise UnsupportedMedia(f"Send {JSON}.", code="unsupported_media_type")
    data = b""
    async for chunk in request.content.iter_chunked(65_536):
        data += chunk
        if len(data) > BODY_BYTES_MAX:
            raise TooLarge(f"A body has {BODY_BYTES_MAX} bytes at most.", code="request_too_large")
    return data or b" "

"""The table of the data plane: which path reaches what; nothing else can be reached.

Every path that leads to a vendor is metered: it stands in `OPERATIONS` and goes through `Calls`.
"""

from collections.abc import Awaitable, Callable

import orjson
import uuid_utils

from gateway import errors
from gateway.auth import Authenticator
from gateway.credential import presented
from gateway.principal import Principal
from gateway.proxy.admit import check_address
from gateway.proxy.answer import refuse
from gateway.proxy.calls import Calls
from gateway.proxy.exchange import CLOSE, Answered, ClientGone, Exchange
from gateway.settings import Config, Route
from providers.adapter import Operation
from providers.openai.calls import DEFAULT

OPERATIONS = {f"/v1/{operation}": operation for operation in Operation}
_MODELS = "/v1/models"
JSON = b"Content-Type: application/json\r\n"
HEALTHY = b'{"status":"ok"}'

Probe = Callable[[], tuple[bool, bytes]]
"""Whether the process is ready, and the JSON that says why."""


class Table:
    """Finds the handler of a request; every answer of the data plane comes from here."""

    def __init__(self, calls: Calls, authenticator: Authenticator, *, probe: Probe) -> None:
        self._calls, self._authenticator, self._probe = calls, authenticator, probe

    def handle(self, exchange: Exchange) -> Awaitable[Answered]:
        """The answer to one request."""
        operation = OPERATIONS.get(exchange.raw_path)
        if operation is not None and exchange.method == "POST":
            return self._calls.serve(exchange, operation)
        return self._other(exchange)

    async def _other(self, exchange: Exchange) -> Answered:
        id_text = str(uuid_utils.uuid7())
        try:
            return await self._found(exchange, id_text)
        except errors.GatewayError as error:
            return refuse(exchange, error, id_text)
        except ClientGone:
            return CLOSE

    async def _found(self, exchange: Exchange, id_text: str) -> Answered:
        path = exchange.raw_path.partition("?")[0]
        operation = OPERATIONS.get(path)
        if operation is not None and exchange.method == "POST":
            return await self._calls.serve(exchange, operation)
        if exchange.method not in ("GET", "HEAD"):
            if operation is None and path != _MODELS and not path.startswith(_MODELS + "/"):
                raise _no_such_path(path)
            raise errors.MethodNotAllowed(
                f"{exchange.method} is not possible here.",
                code="method_not_allowed",
                headers={"allow": "GET" if operation is None else "POST"},
            )
        if path == "/healthz":
            return exchange.answer(200, JSON, HEALTHY)
        if path == "/readyz":
            is_ready, why = self._probe()
            return exchange.answer(200 if is_ready else 503, JSON, why)
        if operation is not None:
            raise errors.MethodNotAllowed(
                f"Use POST with {path}.", code="method_not_allowed", headers={"allow": "POST"}
            )
        if path != _MODELS and not path.startswith(_MODELS + "/"):
            raise _no_such_path(path)
        body = await self._models(exchange, path)
        return exchange.answer(200, JSON + f"X-Request-Id: {id_text}\r\n".encode(), body)

    async def _models(self, exchange: Exchange, path: str) -> bytes:
        """What this key may use: the list, or one of it."""
        key = presented(
            exchange.header("authorization"),
            exchange.header("x-api-key"),
            query=exchange.query_string,
        )
        principal = self._authenticator.cached(key) or await self._authenticator.lookup(key)
        config = self._calls.terms.config
        if principal.networks:
            check_address(exchange, principal, config.limits)
        default = principal.default_model
        if path == _MODELS:
            # The default may be one that stands in no list, because a pattern matches it.
            names = config.exact if default is None else {**config.exact, default: None}
            shown = [
                _shown(name, route, is_default=name == default)
                for name in names
                if (route := _usable(config, principal, name)) is not None
            ]
            return orjson.dumps({"object": "list", "data": shown})
        name = exchange.path.removeprefix(_MODELS + "/")
        if name == DEFAULT and default is not None:
            name = default
        found = _usable(config, principal, name)
        if found is None:
            raise errors.NotFound(
                f"The model {name[:200]!r} does not exist or this key may not use it.",
                code="model_not_found",
                param="model",
            )
        return orjson.dumps(_shown(name, found, is_default=name == default))


def _usable(config: Config, principal: Principal, name: str) -> Route | None:
    """Where the principal's calls for this name go; None: nowhere."""
    route = config.route(name)
    if route is None or not route.targets:
        return None
    return route if principal.may_use(name) or principal.may_use(route.name) else None


def _shown(name: str, route: Route, *, is_default: bool) -> dict[str, object]:
    said = {"id": name, "object": "model", "created": 0, "owned_by": route.targets[0].provider}
    return {**said, "default": True} if is_default else said


def _no_such_path(path: str) -> errors.NotFound:
    return errors.NotFound(
        f"There is no {path[:200]!r} here. POST to one of {', '.join(OPERATIONS)},"
        " or GET /v1/models.",
        code="unknown_url",
    )

"""The management API, put together: its routes, its document and a page to read that on."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import orjson
from aiohttp import web

from gateway.management.answered import AnsweredOnce
from gateway.management.desk import Desk
from gateway.management.guard import Doorman
from gateway.management.mails import TEMPLATES
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
    shown = page(said)

    async def openapi(_request: web.Request) -> web.Response:
        return web.Response(body=text, content_type="application/json")

    async def readable(_request: web.Request) -> web.Response:
        return web.Response(text=shown, content_type="text/html")

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


def page(said: dict[str, Any]) -> str:
    """The document for people: every route under its group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in said["paths"].items():
        for method, operation in methods.items():
            at = {"method": method.upper(), "path": path}
            shown = {**operation, **at, **_bodies(operation, said)}
            groups.setdefault(operation["tags"][0], []).append(shown)
    return TEMPLATES.get_template("api.html").render(said=said, groups=list(groups.items()))


def _bodies(operation: dict[str, Any], said: dict[str, Any]) -> dict[str, str]:
    """What goes in and what comes out, as JSON with each member's type in its place."""
    wanted = operation.get("requestBody", {}).get("content", {}).get("application/json")
    good = next(one for status, one in operation["responses"].items() if status < "300")
    given = good.get("content", {}).get("application/json")
    schemas = said["components"]["schemas"]
    return {
        name: "" if one is None else _text(sketch(one["schema"], schemas))
        for name, one in (("wants", wanted), ("gives", given))
    }


def _text(shape: Any) -> str:
    return orjson.dumps(shape, option=orjson.OPT_INDENT_2).decode()


def sketch(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """A schema as an example whose values are the names of their types."""
    if "$ref" in schema:
        return sketch(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        shapes = [sketch(one, schemas) for one in schema["anyOf"]]
        plain = [shape for shape in shapes if not isinstance(shape, str)]
        return plain[0] if plain else " or ".join(shapes)
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "properties" in schema:
        return {name: sketch(one, schemas) for name, one in schema["properties"].items()}
    if schema.get("type") == "array":
        return [sketch(schema.get("items", {}), schemas)]
    return str(schema.get("format") or schema.get("type", "anything"))

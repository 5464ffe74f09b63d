"""The management API, put together: its routes, its document, its pages and its mails."""

import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import asyncpg
import orjson
from aiohttp import web
from redis.asyncio import Redis

from gateway import outward
from gateway.config import pepper
from gateway.key_cache import KeyCache
from gateway.keys import key_digester
from gateway.listening import listening
from gateway.management import cashier
from gateway.management.access_reviews import AccessReviews
from gateway.management.answered import AnsweredOnce, forget_some
from gateway.management.budget_alerts import BudgetAlerts
from gateway.management.chores import Chore
from gateway.management.deliveries import Messenger
from gateway.management.desk import Desk
from gateway.management.guard import Doorman
from gateway.management.issuers import Issuers
from gateway.management.low_balances import LowBalances
from gateway.management.mails import TEMPLATES, Postman
from gateway.management.passwords import Passwords
from gateway.management.payment_pages import add_payment_pages
from gateway.management.renewals import renew_some
from gateway.management.routes import ROUTES
from gateway.management.spend_anomalies import SpendAnomalies
from gateway.management.top_ups import TopUps
from gateway.management.watch import Observer, Watch
from gateway.notify import Notifier
from gateway.payments.chosen import processor
from gateway.rest.openapi import document
from gateway.rest.rates import Rates
from gateway.rest.route import PREFIX
from gateway.rest.server import Api
from gateway.sealing import sealer
from gateway.settings import Config, Listener
from ledger.moved import Moved
from ledger.postgres import pooled

# Where the links of mails lead, and where people sign in and come back to from an issuer.
_LINKS = ("verify", "reset", "sign-in", "signed-in/{issuer}", "invitation")
_POOL_MAX = 4  # Postgres connections
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


_DUE_EVERY_S = 1.0  # looks at what waits in rows: mails, payments
_RENEWALS_EVERY_S = 5.0
_FORGETS_EVERY_S = 60.0


class Staff(NamedTuple):
    """Who does what the API leaves to be done."""

    pool: asyncpg.Pool
    watch: Watch
    messenger: Messenger
    chores: tuple[Chore, ...]

    def jobs(self) -> Iterator[tuple[str, Coroutine[None, None, None]]]:
        """What runs for as long as the process does."""
        yield "watch", self.watch.run()
        yield "webhooks", self.messenger.run()
        for chore in self.chores:
            yield chore.rows, chore.run()

    def leave(self) -> None:
        """Break off what is under way: a server that is silent now must hold up no stop."""
        self.watch.leave()
        self.messenger.leave()
        for chore in self.chores:
            chore.leave()
        self.pool.terminate()


def chores_of(desk: Desk, postman: Postman) -> Iterator[Chore]:
    """What waits in rows; without a processor nothing is sold, paid or renewed."""
    yield Chore("mails", postman.send_some, every_s=_DUE_EVERY_S)
    yield Chore("answers", partial(forget_some, desk), every_s=_FORGETS_EVERY_S)
    if desk.processor is not None:
        yield Chore("payments", partial(cashier.finish_some, desk), every_s=_DUE_EVERY_S)
        yield Chore("subscriptions", partial(renew_some, desk), every_s=_RENEWALS_EVERY_S)


def observers_of(desk: Desk) -> tuple[Observer, ...]:
    """Whoever acts on balances and budgets; see `gateway.management.watch`."""
    return (
        LowBalances(desk),
        BudgetAlerts(desk),
        SpendAnomalies(desk),
        AccessReviews(desk),
        TopUps(desk),
    )


@asynccontextmanager
async def managed(
    config: Config,
    redis: Redis,
    *,
    moved: Moved,
    wall_s: Callable[[], float],
    monotonic_s: Callable[[], float],
) -> AsyncIterator[Staff]:
    """The management API of this process; gives who does its jobs. `moved`: by the flusher."""
    assert config.postgres.url is not None, "the supervisor has set it"
    secret = pepper(config, secrets.token_urlsafe(32))

    def now() -> datetime:
        return datetime.fromtimestamp(wall_s(), UTC)

    async with (
        pooled(config.postgres.url.reveal(), name="management", size=_POOL_MAX) as pool,
        outward.opened() as asking,
    ):
        desk = Desk(
            config=config,
            pool=pool,
            redis=redis,
            cache=KeyCache(redis, wall_s),
            now=now,
            random_bytes=secrets.token_bytes,
            digest=key_digester(secret),
            sealer=sealer(secret, secrets.token_bytes),
            passwords=Passwords(),
            rates=Rates(monotonic_s),
            issuers=Issuers(config.management.sign_in, asking, monotonic_s),
        )
        chosen = processor(config.payments, pool, now=now, site=desk.site)
        async with chosen as till:
            desk = desk._replace(processor=till)
            async with served(config.listeners.control, desk):
                postman = Postman(pool, config.mail, config.data_dir / "outbox", now)
                yield Staff(
                    pool,
                    Watch(moved, observers_of(desk)),
                    Messenger(desk, Notifier(allows_private=config.management.private_webhooks)),
                    tuple(chores_of(desk, postman)),
                )


@asynccontextmanager
async def served(listener: Listener, desk: Desk) -> AsyncIterator[int]:
    """Serves until the block is left; gives the port."""
    application = web.Application(client_max_size=0)
    said = document(ROUTES, release=version("tollgate"))
    _add_pages(application, said)
    add_payment_pages(application, desk)
    Api(
        ROUTES,
        desk,
        guard=Doorman(desk),
        once=AnsweredOnce(desk),
        rates=desk.rates,
        is_secure=desk.site.startswith("https://"),
        proxies=desk.config.management.proxies,
    ).add_to(application)
    async with listening(listener, application, backlog=128) as port:
        yield port


def _add_pages(application: web.Application, said: dict[str, Any]) -> None:
    """The document, the page to read it on, and the page that the links of mails lead to."""
    text = orjson.dumps(said, option=orjson.OPT_INDENT_2)
    shown = page(said)

    async def openapi(_request: web.Request) -> web.Response:
        return web.Response(body=text, content_type="application/json", headers=_HEADERS)

    async def readable(_request: web.Request) -> web.Response:
        return web.Response(text=shown, content_type="text/html", headers=_HEADERS)

    async def link(_request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline';"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        html = TEMPLATES.get_template("link.html").render(nonce=nonce)
        headers = {**_HEADERS, "Content-Security-Policy": policy}
        return web.Response(text=html, content_type="text/html", headers=headers)

    application.router.add_route("GET", f"{PREFIX}/openapi.json", openapi)
    application.router.add_route("GET", f"{PREFIX}/docs", readable)
    for path in _LINKS:
        application.router.add_route("GET", f"/{path}", link)


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

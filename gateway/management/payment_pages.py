"""What payments need outside the API: events of the processor, and pages for who pays.

An event is believed by its signature alone, counted once by its id, and settled as any other news
of a payment: what it says must be what was asked for. Without a processor none of these exist.
"""

import logging

from aiohttp import web

from gateway.management.desk import Desk
from gateway.management.mails import TEMPLATES
from gateway.management.payments import settle
from gateway.payments.processor import Forged, Processor
from gateway.payments.sandbox import Entered, Sandbox
from ledger.postgres import AWAY

log = logging.getLogger(__name__)

_BODY_BYTES_MAX = 512 * 1024  # Stripe's are a few KiB
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NOTED = """
    INSERT INTO payment_event (processor, id, kind, received_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (processor, id) DO UPDATE SET kind = payment_event.kind
    RETURNING handled_at
"""
_HANDLED = "UPDATE payment_event SET handled_at = $3 WHERE processor = $1 AND id = $2"


def add_payment_pages(application: web.Application, desk: Desk) -> None:
    """The routes that the configured processor needs."""
    processor = desk.processor
    if processor is None:
        return
    pages = _Pages(desk, processor)
    application.router.add_route("GET", "/paid", pages.paid)
    if isinstance(processor, Sandbox):
        application.router.add_route("GET", "/sandbox/{order}", pages.till)
        application.router.add_route("POST", "/sandbox/{order}", pages.pressed)
    else:
        application.router.add_route("POST", f"/webhooks/{processor.name}", pages.event)


class _Pages:
    def __init__(self, desk: Desk, processor: Processor) -> None:
        self._desk, self._processor = desk, processor

    async def event(self, request: web.Request) -> web.Response:
        """What the processor tells by itself. 400: not from it; 503: to be sent again."""
        desk, name = self._desk, self._processor.name
        body = await _body(request)
        try:
            event = self._processor.event(body, request.headers, now=desk.now())
        except Forged as error:
            said = {"reason": str(error), "address": request.remote, "cause": "forged event"}
            log.warning("an event of a payment is refused", extra=said)
            return _said(400, "This is no event of the payment processor's.")
        try:
            if await desk.pool.fetchval(_NOTED, name, event.id, event.kind, desk.now()) is None:
                if event.payment is not None:
                    await settle(desk, event.payment, processor=name)
                await desk.pool.execute(_HANDLED, name, event.id, desk.now())
        except AWAY:
            return _said(503, "Try again.")
        return _said(200, "Thank you.")

    async def paid(self, _request: web.Request) -> web.Response:
        """Where payers come back to."""
        return _page("paid.html")

    async def till(self, _request: web.Request) -> web.Response:
        """The sandbox's page to pay on."""
        return _page("sandbox.html", values=[*Entered])

    async def pressed(self, request: web.Request) -> web.Response:
        """A button of that page."""
        assert isinstance(self._processor, Sandbox), "the route is its own"
        wanted = (await request.post()).get("value")
        if wanted not in [*Entered]:
            return _said(400, f"value is one of {', '.join(Entered)}.")
        back = await self._processor.pay(request.match_info["order"], Entered(str(wanted)))
        if back is None:
            return _said(404, "There is nothing to pay here.")
        return web.Response(status=303, headers={**_HEADERS, "Location": back})


async def _body(request: web.Request) -> bytes:
    data = b""
    async for chunk in request.content.iter_chunked(65_536):
        data += chunk
        if len(data) > _BODY_BYTES_MAX:
            raise web.HTTPRequestEntityTooLarge(_BODY_BYTES_MAX, len(data))
    return data


def _said(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers=_HEADERS)


def _page(name: str, **facts: object) -> web.Response:
    html = TEMPLATES.get_template(name).render(**facts)
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'none'"
    )
    headers = {**_HEADERS, "Content-Security-Policy": policy}
    return web.Response(text=html, content_type="text/html", headers=headers)

"""Read a request's body within its limits, and the few facts in it that admission needs.

A body is kept until its call is over, since it may have to be sent again, and it is read before
anybody knows whether the call can be paid. So a worker's bodies have a limit together (`Bodies`).
"""

import asyncio
from collections.abc import Callable

from gateway import errors
from gateway.proxy.exchange import Exchange
from gateway.proxy.live import LiveCall
from gateway.settings import Limits
from providers.adapter import BadCall, Call, Operation
from providers.openai.calls import read_call

_JSON = "application/json"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Bodies:
    """The bodies that one worker reads or keeps, all together."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0  # bytes

    def add(self, live: LiveCall, count: int) -> None:
        """So many bytes more of a call's body are here; `Unavailable` if that is too much."""
        live.body_bytes += count
        self.size += count
        if self.size > live.terms.config.limits.body_bytes_in_all:
            raise errors.Unavailable(
                "The gateway has as many requests in memory as it can take; nothing was charged.",
                code="too_many_bodies",
            )

    def drop(self, live: LiveCall) -> None:
        """The call is over, and its body with it."""
        self.size -= live.body_bytes


def body_at_hand(exchange: Exchange, limits: Limits) -> bytes | None:
    """The whole body, if it came with the head; None: `read_rest` waits for it.

    Raises the `GatewayError` for a wrong type or a large body, whether it has come or not.
    """
    header = exchange.header
    if header("content-type") != _JSON or header("content-encoding") is not None:
        _check_media(exchange)
    length = header("content-length")
    if length is None or int(length) <= limits.body_bytes_max:
        whole = exchange.whole_body()
        if whole is None or len(whole) <= limits.body_bytes_max:
            return whole
    raise _too_large(limits)


def read_facts(operation: Operation, body: bytes, default: str | None = None) -> Call:
    """What admission needs to know of a call; `BadRequest` where it cannot be read.

    `default`: the model of a call that names none.
    """
    try:
        return read_call(operation, body, default)
    except BadCall as error:
        raise errors.BadRequest(
            error.message, code=error.code or "invalid_request", param=error.param
        ) from error


async def read_rest(exchange: Exchange, limits: Limits, add: Callable[[int], None]) -> bytes:
    """The whole body, once it has come. Raises the `GatewayError` for a large or a slow one.

    `add` is told how many bytes more are here, each time; what it raises ends the reading.
    """
    payload = exchange.content
    if exchange.header("expect") is not None:
        exchange.write(_CONTINUE)
    # One buffer that grows: parts would stay in memory beside what is made of them.
    body = bytearray()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    try:
        async with asyncio.timeout_at(_due_s(began_s, 0, limits)) as deadline:
            while part := await payload.readany():
                body += part
                add(len(part))
                if len(body) > limits.body_bytes_max:
                    raise _too_large(limits)
                deadline.reschedule(_due_s(began_s, len(body), limits))
    except TimeoutError as error:
        took_s = loop.time() - began_s
        raise errors.ClientTooSlow(
            f"The body came too slowly: {len(body)} bytes in {took_s:.0f} s.",
            code="request_timeout",
        ) from error
    return bytes(body)


def _due_s(began_s: float, size: int, limits: Limits) -> float:
    """When more than the `size` bytes of a body that are here must have come, or all of it."""
    earned_s = limits.body_grace_s + size / limits.body_bytes_per_s_min
    return began_s + min(earned_s, limits.body_timeout_s)


def _check_media(exchange: Exchange) -> None:
    media = exchange.header("content-type")
    if media is None or media.partition(";")[0].strip().lower() != _JSON:
        raise errors.UnsupportedMedia(
            "Send the body as Content-Type: application/json.", code="unsupported_media_type"
        )
    if exchange.header("content-encoding") not in (None, "identity"):
        raise errors.UnsupportedMedia(
            "Send the body uncompressed, without Content-Encoding.", code="unsupported_encoding"
        )


def _too_large(limits: Limits) -> errors.TooLarge:
    return errors.TooLarge(
        f"The body is larger than the {limits.body_bytes_max} bytes allowed here.",
        code="request_too_large",
    )

"""Read a request's body within its limits, before anything is known about the call."""

import asyncio

from gateway import errors
from gateway.proxy.server import Exchange
from gateway.settings import Limits

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read_body(exchange: Exchange, limits: Limits) -> bytes:
    """The whole body. Raises the `GatewayError` for a wrong type, a large or a slow body."""
    _check_head(exchange, limits)
    payload = exchange.content
    if payload.is_eof():  # it came with the head
        return payload.read_nowait(-1)
    if exchange.header("expect") is not None:
        exchange.write(_CONTINUE)
    # One buffer that grows: parts would stay in memory beside what is made of them.
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while part := await payload.readany():
                body += part
                if len(body) > limits.body_bytes_max:
                    raise _too_large(limits)
    except TimeoutError as error:
        raise errors.ClientTooSlow(
            f"The body did not arrive within {limits.body_timeout_s:g} s.", code="request_timeout"
        ) from error
    return bytes(body)


def _check_head(exchange: Exchange, limits: Limits) -> None:
    media = exchange.header("content-type")
    if media is None or media.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMedia(
            "Send the body as Content-Type: application/json.", code="unsupported_media_type"
        )
    if exchange.header("content-encoding") not in (None, "identity"):
        raise errors.UnsupportedMedia(
            "Send the body uncompressed, without Content-Encoding.", code="unsupported_encoding"
        )
    length = exchange.content_length
    if length is not None and length > limits.body_bytes_max:
        raise _too_large(limits)


def _too_large(limits: Limits) -> errors.TooLarge:
    return errors.TooLarge(
        f"The body is larger than the {limits.body_bytes_max} bytes allowed here.",
        code="request_too_large",
    )

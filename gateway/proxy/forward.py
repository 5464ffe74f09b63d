"""Send a call to a target and wait for the first thing it says, trying again where that is safe.

A call is sent again only before its first byte came back, only when the vendor cannot have charged
for it, and never for a client that has gone.
"""

import asyncio
import random
from dataclasses import dataclass
from typing import NamedTuple

from gateway import errors
from gateway.proxy.exchange import ClientGone
from gateway.proxy.live import NO_END, LiveCall
from gateway.upstream import Answer, Upstream, UpstreamError, UpstreamGarbled
from ledger.usage import Source
from providers.adapter import Adapter, Failure, Meter

ATTEMPTS_PER_TARGET = 2
RETRY_AFTER_S_MAX = 2.0  # a vendor that asks for a longer pause is not waited for
_BACKOFF_S = 0.1
_ERROR_BYTES_MAX = 64 * 1024
# Of a body, or of a stream before it says something: embeddings of 2,048 texts have 60 MB at most,
# and one packed MiB may be a GiB of nothing.
_KEPT_BYTES_MAX = 64 * 1024 * 1024
# Statuses by which a vendor says that it did not do the work, and may do it for another try.
_TRANSIENT = frozenset({500, 502, 503, 529})
_ELSEWHERE = frozenset({408, 429, 504}) | _TRANSIENT
_ERROR_STATUS_MIN = 300
_EVENT_ENDS = (b"\n\n", b"\n\r\n")


@dataclass(slots=True)
class Opened:
    """An answer that has begun well."""

    answer: Answer
    meter: Meter
    is_streamed: bool
    first: bytes  # what of it may be shown already
    is_over: bool  # the vendor has nothing more to say
    rest: bytes = b""  # what has come of a stream, but not to its meter yet
    feed_to: int = NO_END  # how many bytes of a stream its meter may get without asking `Growth`


class Failed(NamedTuple):
    """An attempt that came to nothing the client could use."""

    error: errors.GatewayError
    may_repeat: bool  # at the same target
    may_go_elsewhere: bool
    pause_s: float = 0.0


async def open_answer(live: LiveCall, *, upstream: Upstream, adapter: Adapter) -> Opened:
    """The first answer that begins well; else the `GatewayError` of the last attempt."""
    last: Failed | None = None
    for candidate in live.candidates:
        for attempt in range(ATTEMPTS_PER_TARGET):
            if last is not None:
                if not (last.may_repeat if attempt else last.may_go_elsewhere):
                    continue
                if attempt:
                    await asyncio.sleep(last.pause_s)
            if live.client_gone:
                raise ClientGone
            live.candidate = candidate
            live.attempts += 1
            live.sent_s = live.sent_s or live.clock()
            target, timeouts = candidate.target, candidate.provider.timeouts
            request = adapter.request(live.call, target)
            try:
                answer = live.answer = await upstream.send(request, target, deadlines=timeouts)
            except UpstreamError as error:
                last = _unreachable(live, error)
                continue
            result = _in_one_piece(live, answer, adapter) or await _begin(live, answer, adapter)
            if isinstance(result, Opened):
                return result
            last = result
    assert last is not None, "a call has at least one candidate"
    raise last.error


def _in_one_piece(live: LiveCall, answer: Answer, adapter: Adapter) -> Opened | Failed | None:
    """A good body that came whole with its head, as most do: nothing has to be awaited."""
    if answer.is_event_stream or answer.status >= _ERROR_STATUS_MIN:
        return None
    body = answer.rest()
    if body is None:
        return None
    meter = live.meter = adapter.meter(
        live.call, live.candidate.target, streamed=False, bound=live.input_bound
    )
    now_s = live.upstream_done_s = live.clock()
    live.first_byte_s = live.first_byte_s or now_s
    shown = meter.feed(body) + meter.end() if body else meter.end()
    opened = Opened(answer, meter, is_streamed=False, first=shown, is_over=True)
    return opened if meter.failure is None else _judged(live, opened, meter.failure)


async def _begin(live: LiveCall, answer: Answer, adapter: Adapter) -> Opened | Failed:
    """Read on until the answer says something."""
    if answer.status >= _ERROR_STATUS_MIN:
        live.failed("status")
        return await _refused(answer, adapter)
    streamed = answer.is_event_stream
    meter = live.meter = adapter.meter(
        live.call, live.candidate.target, streamed=streamed, bound=live.input_bound
    )
    shown: list[bytes] = []
    is_over, rest, size = False, b"", 0
    try:
        while not is_over and not (streamed and meter.started) and meter.failure is None:
            received, rest = rest or await answer.read(), b""
            live.first_byte_s = live.first_byte_s or live.clock()
            size += len(received)
            if size > _KEPT_BYTES_MAX:
                raise _too_long(answer)
            if streamed and live.growth is not None:
                received, rest = _first_event(received)
            if received:
                shown.append(meter.feed(received))
            if not received or (answer.is_over and not streamed):
                is_over = True
                live.upstream_done_s = live.clock()
                shown.append(meter.end())
    except UpstreamError as error:
        return _unreachable(live, error)
    opened = Opened(answer, meter, streamed, b"".join(shown), is_over, rest)
    return opened if meter.failure is None else _judged(live, opened, meter.failure)


def _too_long(answer: Answer) -> UpstreamError:
    answer.abort()
    return UpstreamGarbled(
        "the answer is longer than can be kept", phase="body", sent=True, answered=True
    )


def _first_event(received: bytes) -> tuple[bytes, bytes]:
    """The bytes up to the first end of an event, and the rest, which may need a larger hold."""
    ends = [at for end in _EVENT_ENDS if (at := received.find(end) + len(end)) >= len(end)]
    first = min(ends, default=len(received))
    return received[:first], received[first:]


def _judged(live: LiveCall, opened: Opened, failure: Failure) -> Opened | Failed:
    """A good answer tells an error: if it told nothing else, the attempt has failed.

    What was consumed is charged by its vendor, so an error behind it ends the answer and is shown
    as part of it; nobody tries again.
    """
    if opened.meter.usage().source is not Source.NONE:
        return opened
    opened.answer.abort()
    live.failed("answer")
    return _failed(failure, None)


async def _refused(answer: Answer, adapter: Adapter) -> Failed:
    parts: list[bytes] = []
    size = 0
    try:
        while (part := await answer.read()) and size < _ERROR_BYTES_MAX:
            parts.append(part)
            size += len(part)
    except UpstreamError:
        pass  # the status says enough
    if size < _ERROR_BYTES_MAX:
        answer.release()
    else:
        answer.abort()
    failure = adapter.failure(answer.status, b"".join(parts))
    return _failed(failure, answer.header(b"retry-after"))


def _failed(failure: Failure, retry_after: str | None) -> Failed:
    pause_s = _BACKOFF_S * (1 + random.random())  # noqa: S311 - jitter is no secret
    if retry_after is not None:
        pause_s = float(retry_after) if retry_after.isdigit() else RETRY_AFTER_S_MAX + 1
    return Failed(
        client_error(failure, retry_after),
        may_repeat=failure.status in _TRANSIENT and pause_s <= RETRY_AFTER_S_MAX,
        may_go_elsewhere=failure.status in _ELSEWHERE,
        pause_s=pause_s,
    )


def _unreachable(live: LiveCall, error: UpstreamError) -> Failed:
    live.failed(error.phase)
    if error.timeout:
        made: errors.GatewayError = errors.GatewayTimeout(
            f"The provider did not answer in time ({error.phase}).", code="upstream_timeout"
        )
    else:
        made = errors.BadGateway(
            f"The provider could not be reached or broke off ({error.phase}).",
            code="upstream_unreachable",
        )
    # What may have reached the vendor may be charged there, so it is not sent twice.
    return Failed(made, may_repeat=not error.sent, may_go_elsewhere=not error.sent, pause_s=0.0)


def client_error(failure: Failure, retry_after: str | None = None) -> errors.GatewayError:
    """What the client is told of a vendor's failure; the vendor's quarrel with us stays ours."""
    status = failure.status
    if status in (401, 402):
        return errors.BadGateway(
            "The provider refused the gateway's own credentials; the operator has to mend this.",
            code="provider_credentials_refused",
        )
    if status == errors.LoopDetected.status:
        return errors.LoopDetected()
    if status in (408, 504):
        return errors.GatewayTimeout(failure.message, code="upstream_timeout")
    if status in (503, 529):
        after = int(retry_after) if retry_after is not None and retry_after.isdigit() else 1
        return errors.Unavailable(
            failure.message, code=failure.code or "upstream_overloaded", retry_after_s=after
        )
    if status >= 500 or status < 400:  # noqa: PLR2004 - the classes of HTTP
        return errors.BadGateway(failure.message, code=failure.code or "upstream_error")
    error = errors.UpstreamRefused(
        status, failure.message, kind=failure.type, code=failure.code, param=failure.param
    )
    if retry_after is not None:
        error.headers["retry-after"] = retry_after
    return error

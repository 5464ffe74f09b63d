"""Pass the vendor's answer to the client as it comes, metering on the way, at the client's pace.

The end of a call is in the journal before the client can know that its answer is whole: a stream's
terminal event, or the last byte of a body, waits for it. A client that leaves is not written to any
more; whether the rest is read for the exact charge is decided elsewhere.
"""

from collections.abc import Awaitable, Callable

from gateway import errors
from gateway.proxy.answer import head_lines
from gateway.proxy.exchange import Answered, ClientGone
from gateway.proxy.forward import Opened
from gateway.proxy.live import LiveCall
from gateway.upstream import Answer, UpstreamError
from ledger.record import Outcome
from providers.adapter import Failure

REFUSED = "extend_refused"
"""The flag of a stream that was ended because no more could be held for it."""

_SECRET_CHARACTERS_MIN = 8  # shorter ones are found in innocent words

EndCall = Callable[[LiveCall, Outcome], Awaitable[None] | None]
"""Ends the call in journal and ledger. What it gives is awaited before the last byte goes."""


async def relay_body(live: LiveCall, opened: Opened, end: EndCall) -> Answered:
    """Answer with a whole body. The charge is known by then, so the head tells it."""
    answer, body = opened.answer, opened.first
    if not opened.is_over:
        answer.release()
    if (safe := end(live, _outcome(live))) is not None:
        await safe
    head = head_lines(live, answer.content_type, charge=live.record.charge)
    return live.exchange.answer(answer.status, head, body)


async def relay_stream(live: LiveCall, opened: Opened, end: EndCall) -> Answered:
    """Answer with a stream, event by event."""
    answer, meter, growth = opened.answer, opened.meter, live.growth
    shown, is_over, feed_to = opened.first, opened.is_over, opened.feed_to
    try:
        while True:
            if meter.failure is not None:
                shown = _without_secrets(live, shown)
            if is_over:
                break
            if meter.finished:
                await _end_once(live, _outcome(live), end)
                if answer.is_over:  # nothing else can come: what is left to show goes in one write
                    shown, is_over = shown + meter.end(), True
                    continue
            _show(live, answer.content_type, shown)
            if live.exchange.is_behind and not live.client_gone:
                await _caught_up(live)
            received = await answer.read()
            live.received += len(received)
            if live.received > feed_to:
                assert growth is not None, "the others have no end"
                shown, feed_to = await growth.feed(live, received)
            elif received:
                shown = meter.feed(received)
            else:
                shown, is_over = meter.end(), True
    except UpstreamError as error:
        return await _broken(live, error, end)
    answer.release()
    return await _ended(live, answer.content_type, shown, end)


async def relay_limit(live: LiveCall, answer: Answer, shown: bytes, end: EndCall) -> Answered:
    """End a stream for which no more can be held, as it would at a limit of the client's own.

    The vendor, which would go on with what nobody can pay, is cut when the call is closed.
    """
    meter = live.meter
    assert meter is not None
    live.record.flags.append(REFUSED)
    last = shown + meter.ending(None)
    await _end_once(live, Outcome.LIMITED, end)
    if live.client_gone:
        raise ClientGone
    if not live.exchange.head_sent:
        live.exchange.start(live.status, head_lines(live, answer.content_type), b"")
    return live.exchange.finish(last)


def _show(live: LiveCall, content_type: str, shown: bytes) -> None:
    if live.client_gone:
        return
    try:
        if not live.exchange.head_sent:
            live.exchange.start(live.status, head_lines(live, content_type), shown)
        elif shown:
            live.exchange.write_chunk(shown)
    except ClientGone:
        live.leave()


async def _caught_up(live: LiveCall) -> None:
    try:
        await live.exchange.drained()
    except ClientGone:
        live.leave()


def _without_secrets(live: LiveCall, shown: bytes) -> bytes:
    """An error event without the key that the vendor was called with: some quote it."""
    target = live.candidate.target
    for one in (target.api_key, *target.headers.values()):
        secret = one.reveal()
        if len(secret) >= _SECRET_CHARACTERS_MIN:
            shown = shown.replace(secret.encode(), b"[secret]")
    return shown


async def _ended(live: LiveCall, content_type: str, last: bytes, end: EndCall) -> Answered:
    """The vendor has said all: end the call, then show the last of it."""
    outcome = _outcome(live)
    await _end_once(live, outcome, end)
    if outcome is Outcome.TRUNCATED:
        told = errors.BadGateway("The provider's answer ended early.", code="upstream_truncated")
        last += _event(live, told)
    if live.client_gone:
        raise ClientGone
    if not live.exchange.head_sent:
        live.exchange.start(live.status, head_lines(live, content_type), b"")
    return live.exchange.finish(last)


async def _end_once(live: LiveCall, outcome: Outcome, end: EndCall) -> None:
    if not live.is_ended and (safe := end(live, outcome)) is not None:
        await safe


def _outcome(live: LiveCall) -> Outcome:
    meter = live.meter
    assert meter is not None
    if meter.failure is not None:
        return Outcome.UPSTREAM_ERROR
    if live.client_gone:
        return Outcome.CLIENT_DISCONNECT
    return Outcome.SUCCESS if meter.finished else Outcome.TRUNCATED


async def _broken(live: LiveCall, error: UpstreamError, end: EndCall) -> Answered:
    """The vendor broke off: what came is charged, and the client is told within its stream."""
    meter = live.meter
    assert meter is not None
    meter.end()  # what it still keeps is half an event, worth nothing to anybody
    live.failed(error.phase)
    if not live.is_ended:
        outcome = Outcome.TIMEOUT if error.timeout else Outcome.UPSTREAM_ERROR
        if live.client_gone:
            outcome = Outcome.CLIENT_DISCONNECT
        await _end_once(live, outcome, end)
    told: errors.GatewayError
    if error.timeout:
        told = errors.GatewayTimeout("The provider stopped sending.", code="upstream_timeout")
    else:
        told = errors.BadGateway("The provider broke off its answer.", code="upstream_error")
    if live.client_gone:
        raise ClientGone
    if not live.exchange.head_sent:
        raise told
    # Behind its terminal event nothing can be missing.
    return live.exchange.finish(b"" if meter.finished else _event(live, told))


def _event(live: LiveCall, told: errors.GatewayError) -> bytes:
    """The error as an event. A blank line keeps it apart from half an event of the vendor's."""
    assert live.meter is not None
    failure = Failure(told.message, told.type, told.code, None, told.status_now)
    return b"\n\n" + live.meter.ending(failure)

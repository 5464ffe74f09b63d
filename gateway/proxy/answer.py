"""The header lines of an answer: an allow-list of the vendor's, and what we have to say."""

from gateway import errors
from gateway.proxy.exchange import Answered, Exchange
from gateway.proxy.live import LiveCall

_PASSED = (b"openai-processing-ms", b"openai-version")
_STREAM_LINES = "Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n"


def head_lines(live: LiveCall, content_type: str, *, charge: int | None = None) -> bytes:
    """Rendered header lines of a good answer. `charge`: nano-USD; None while a stream goes on."""
    head = f"Content-Type: {content_type}\r\nX-Request-Id: {live.id_text}\r\n"
    if charge is None:
        head += f"{_STREAM_LINES}X-Tollgate-Balance-Nanos: {live.held.free}\r\n"
    else:
        # The hold is given back and the charge taken by the time the client reads this.
        balance = live.held.free + live.hold.amount - charge
        head += f"X-Tollgate-Charge-Nanos: {charge}\r\nX-Tollgate-Balance-Nanos: {balance}\r\n"
    if live.clamped:
        head += f"X-Tollgate-Max-Output-Tokens: {live.clamped}\r\n"
    if live.hold.rates:
        head += _rate_lines(live)
    answer = live.answer
    if answer is not None:
        for name in _PASSED:
            if name in answer.named:
                head += f"{name.decode()}: {answer.header(name)}\r\n"
    return head.encode("latin-1")


def _rate_lines(live: LiveCall) -> str:
    lines = []
    for rate, left in zip(live.hold.rates, live.held.rate_left, strict=False):
        unit = "tokens" if rate.id.startswith("tpm:") else "requests"
        lines.append(
            f"X-Ratelimit-Limit-{unit}: {rate.per_minute}\r\n"
            f"X-Ratelimit-Remaining-{unit}: {left}\r\n"
        )
    return "".join(lines)


def refuse(
    exchange: Exchange, error: errors.GatewayError, id_text: str, *, close: bool = False
) -> Answered:
    """Answer with an error, in the dialect of the path called. `close`: and hang up."""
    lines = [f"Content-Type: application/json\r\nX-Request-Id: {id_text}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in error.headers.items()]
    head = "".join(lines).encode("latin-1", "replace")
    return exchange.answer(error.status_now, head, errors.body(error), close=close)

"""From a script and a request to the steps of one answer: what is written when, what breaks."""

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from itertools import pairwise
from typing import NamedTuple

import brotli  # type: ignore[import-untyped]  # ships without types
import orjson
import zstandard

from tests.vendor import dialect, responses
from tests.vendor.asked import Asked
from tests.vendor.dialect import Event, Tokens
from tests.vendor.script import Encoding, Framing, Script

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
_REASONS |= {408: "Request Timeout", 413: "Content Too Large", 429: "Too Many Requests"}
_REASONS |= {500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable"}

# What OpenAI's edge says beside the content; much of it must not reach a client of the gateway.
_HEADERS = {
    "date": "Sat, 01 Aug 2026 12:00:00 GMT",
    "server": "cloudflare",
    "openai-organization": "vendor-org-internal",
    "openai-processing-ms": "12",
    "openai-version": "2020-10-01",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-reset-requests": "6ms",
    "set-cookie": "__cf_bm=secret; path=/; HttpOnly; Secure",
    "cf-ray": "98a1b2c3d4e5f607-FRA",
    "alt-svc": 'h3=":443"; ma=86400',
    "x-request-id": "req_" + dialect.ID,
}


class Do(Enum):
    """What a step is."""

    SEND = auto()
    WAIT = auto()
    HOLD = auto()  # until a release
    END = auto()  # the answer is over
    CLOSE = auto()  # the answer is over, and so is the connection
    CUT = auto()  # the connection is over, the answer is not
    RESET = auto()  # close with a TCP reset


class Step(NamedTuple):
    """One step; `deltas` have been sent when it is done."""

    do: Do
    data: bytes = b""
    seconds: float = 0.0
    deltas: int = 0
    body_bytes: int = 0


class Plan(NamedTuple):
    """How one kind of request is answered. Ids in it are placeholders."""

    status: int
    steps: tuple[Step, ...]
    tokens: Tokens
    deltas: int  # in the whole answer
    is_whole: bool  # nothing breaks it


class _Answer(NamedTuple):
    status: int
    content_type: str
    events: list[Event]  # one if it is no stream
    is_stream: bool = False
    framing: Framing = "length"


_NOTHING = Tokens(0, 0, 0, 0, is_cut=False)


def plan(script: Script, asked: Asked, models: Iterable[str]) -> Plan:
    """All that happens after the request has been read."""
    answer = _answer(script, asked, models)
    is_billed = answer.status < 400 and script.error_after not in (-1, 0)
    count = dialect.tokens(script, asked) if is_billed else _NOTHING
    steps = tuple(_steps(script, asked, answer))
    return Plan(
        status=answer.status,
        steps=steps,
        tokens=count,
        deltas=_pieces(script, asked, answer)[-1].deltas,
        is_whole=steps[-1].do in (Do.END, Do.CLOSE)
        and script.error_after is None
        and script.eof_after is None,
    )


_BODIES: dict[str, Callable[[Script, Asked], bytes]] = {
    "chat": dialect.chat_body,
    "completions": dialect.completion_body,
    "embeddings": dialect.embeddings_body,
    "moderations": dialect.moderations_body,
    "responses": responses.response_body,
}
_STREAMS: dict[str, Callable[[Script, Asked], list[Event]]] = {
    "chat": dialect.chat_events,
    "completions": dialect.completion_events,
    "responses": responses.response_events,
}


def _answer(script: Script, asked: Asked, models: Iterable[str]) -> _Answer:
    """What would be sent if nothing went wrong."""
    json = script.content_type or "application/json"
    if script.raw is not None:
        framing: Framing = "chunked" if asked.stream else "length"
        sent = [Event(script.raw, 0)]
        return _Answer(script.status, script.content_type or "", sent, framing=framing)
    if script.body is not None or script.status >= 400:
        error = orjson.dumps(dialect.error_object(script, script.status))
        body = error if script.body is None else script.body.encode()
        return _Answer(script.status, json, [Event(body, 0)])
    if asked.stream and asked.operation in _STREAMS:
        events = _STREAMS[asked.operation](script, asked)
        sse = script.content_type or "text/event-stream; charset=utf-8"
        return _Answer(script.status, sse, events, is_stream=True, framing="chunked")
    if asked.operation in _BODIES:
        return _Answer(script.status, json, [Event(_BODIES[asked.operation](script, asked), 1)])
    if asked.operation == "models":
        return _Answer(200, json, [Event(dialect.models_body(list(models)), 0)])
    return _Answer(404, json, [Event(orjson.dumps(dialect.error_object(script, 404)), 0)])


def _steps(script: Script, asked: Asked, answer: _Answer) -> Iterator[Step]:
    if script.head_s:
        yield Step(Do.WAIT, seconds=script.head_s)
    if script.hold_at == -1:
        yield Step(Do.HOLD)
    if script.close_before_head or script.reset_before_head:
        yield Step(Do.RESET if script.reset_before_head else Do.CUT)
        return
    if script.garbage:
        yield Step(Do.SEND, b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        yield Step(Do.CUT)
        return
    if script.raw_wire is not None:
        yield Step(Do.SEND, script.raw_wire, body_bytes=len(script.raw_wire))
        yield Step(Do.CLOSE)
        return
    pieces = _encoded(script.encoding, _pieces(script, asked, answer))
    framing = script.framing or answer.framing
    head = _head(script, answer, framing=framing, length=sum(len(piece.data) for piece in pieces))
    body = list(
        _until_reset(
            _body(script, asked, pieces, is_stream=answer.is_stream), script.reset_after_bytes
        )
    )
    yield from _joined(head, body, framing=framing, first_s=script.first_s)


def _joined(head: bytes, body: list[Step], *, framing: str, first_s: float) -> Iterator[Step]:
    """The head in one write with the first piece, unless there is a wait between them."""
    waiting = head
    if first_s:
        yield Step(Do.SEND, head)
        yield Step(Do.WAIT, seconds=first_s)
        waiting = b""
    for step in body:
        if step.do is Do.SEND:
            size = len(step.data)
            data = b"%x\r\n%b\r\n" % (size, step.data) if framing == "chunked" else step.data
            yield step._replace(data=waiting + data, body_bytes=size)
            waiting = b""
            continue
        if waiting:
            yield Step(Do.SEND, waiting)
            waiting = b""
        if step.do is Do.END and framing == "chunked":
            yield Step(Do.SEND, b"0\r\n\r\n", deltas=step.deltas)
        yield Step(Do.CLOSE) if step.do is Do.END and framing == "close" else step


def _head(script: Script, answer: _Answer, *, framing: str, length: int) -> bytes:
    headers = dict(_HEADERS)
    if answer.content_type:
        headers["content-type"] = answer.content_type
    if framing == "chunked":
        headers["transfer-encoding"] = "chunked"
    elif framing == "length":
        headers["content-length"] = str(length)
    else:
        headers["connection"] = "close"
    if script.encoding:
        headers["content-encoding"] = "gzip" if script.encoding == "corrupt" else script.encoding
    headers |= script.headers
    lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _pieces(script: Script, asked: Asked, answer: _Answer) -> list[Event]:
    """What is written in one go each. An answer that is no stream counts its pieces as deltas."""
    if answer.is_stream:
        return answer.events
    body = b"".join(event.data for event in answer.events)
    if script.cuts is not None:
        places = script.cuts
    elif script.cut_seed is not None:
        chosen = random.Random(script.cut_seed)  # noqa: S311 - the same cuts for the same seed
        places = [chosen.randrange(1, max(len(body), 2)) for _ in range(chosen.randrange(1, 17))]
    elif _troubles(script, asked):
        places = [len(body) // 2]
    else:
        return answer.events
    borders = [0, *sorted({place for place in places if 0 < place < len(body)}), len(body)]
    return [Event(body[a:b], number + 1) for number, (a, b) in enumerate(pairwise(borders))]


def _body(script: Script, asked: Asked, pieces: list[Event], *, is_stream: bool) -> Iterator[Step]:
    """The pieces in their time, up to where the trouble begins."""
    marks: dict[int, list[Step]] = {}
    for after, steps in _troubles(script, asked):
        place = _place(pieces, after) if is_stream else min(max(after, 0), len(pieces) - 1)
        marks.setdefault(place, []).extend(steps)
    is_cut = script.cuts is not None or script.cut_seed is not None
    for number, piece in enumerate([*pieces, None]):
        if number and piece is not None and (script.interval_s or is_cut):
            yield Step(Do.WAIT, seconds=script.interval_s)
        for step in marks.get(number, ()):
            yield step
            if step.do in (Do.END, Do.CUT, Do.RESET):
                return
        if piece is not None:
            yield from _crumbs(script, piece)
    yield Step(Do.END)


def _crumbs(script: Script, piece: Event) -> Iterator[Step]:
    """A piece, or its crumbs; its delta counts as sent with the last of them."""
    size = script.trickle_bytes or max(len(piece.data), 1)
    for start in range(0, len(piece.data), size):
        crumb = piece.data[start : start + size]
        if start:
            yield Step(Do.WAIT, seconds=script.trickle_s)
        is_last = start + size >= len(piece.data)
        yield Step(Do.SEND, crumb, deltas=piece.deltas if is_last else max(piece.deltas - 1, 0))


def _troubles(script: Script, asked: Asked) -> list[tuple[int, list[Step]]]:
    """What happens after which delta, in the order in which it happens at the same one."""
    error = dialect.sse(dialect.error_object(script, 500))
    if asked.operation == "responses":
        error = responses.error_event(script)
    held_at = script.hold_at if script.hold_at != -1 else None  # that one is before the head
    named = [
        (script.stall_after, [Step(Do.WAIT, seconds=script.stall_s)]),
        (held_at, [Step(Do.HOLD)]),
        (script.error_after, [Step(Do.SEND, error), Step(Do.END)]),
        (script.eof_after, [Step(Do.END)]),
        (script.cut_after, [Step(Do.CUT)]),
        (script.reset_after, [Step(Do.RESET)]),
    ]
    return [(after, steps) for after, steps in named if after is not None]


def _place(pieces: list[Event], after: int) -> int:
    """Before the next delta, or right behind the last."""
    if after < 0:
        return 0
    total = pieces[-1].deltas
    if after < total:
        return next(number for number, piece in enumerate(pieces) if piece.deltas > after)
    return next(number for number, piece in enumerate(pieces) if piece.deltas == total) + 1


def _until_reset(steps: Iterable[Step], limit_bytes: int | None) -> Iterator[Step]:
    """The steps until so many bytes of the body have been sent; then a reset."""
    left = limit_bytes
    for step in steps:
        if left is None or len(step.data) <= left:
            left = None if left is None else left - len(step.data)
            yield step
            continue
        yield Step(Do.SEND, step.data[:left], deltas=max(step.deltas - 1, 0))
        yield Step(Do.RESET)
        return


def _encoded(encoding: Encoding, pieces: list[Event]) -> list[Event]:
    """Each piece compressed so that it can be read when it comes."""
    if not encoding:
        return pieces
    if encoding == "corrupt":
        whole = _encoded("gzip", pieces)
        spoiled = bytes(byte ^ 0x55 for byte in whole[0].data[12:])
        return [whole[0]._replace(data=whole[0].data[:12] + spoiled), *whole[1:]]
    write, end = _encoder(encoding)
    packed = [piece._replace(data=write(piece.data)) for piece in pieces]
    return [*packed[:-1], packed[-1]._replace(data=packed[-1].data + end())]


def _encoder(encoding: Encoding) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """How to add a piece, and how to end."""
    match encoding:
        case "br":
            packer = brotli.Compressor(quality=4)
            return lambda data: packer.process(data) + packer.flush(), packer.finish
        case "zstd":
            zstd = zstandard.ZstdCompressor().compressobj()
            block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
            return lambda data: zstd.compress(data) + zstd.flush(block), zstd.flush
        case _:
            flate = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
            flush = zlib.Z_SYNC_FLUSH
            return lambda data: flate.compress(data) + flate.flush(flush), flate.flush

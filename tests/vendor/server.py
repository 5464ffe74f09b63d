"""The scripted vendor's server: fast enough to be no part of what is measured."""

import asyncio
import hashlib
import socket
import struct
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import parse_qs, urlsplit

import httptools
import msgspec

from tests.vendor.asked import Asked, asked
from tests.vendor.dialect import ID
from tests.vendor.plan import Do, Plan, Step, plan
from tests.vendor.script import Entry, Script, State

_BODY_LOGGED_BYTES = 4_096
_PLANS_MAX = 10_000
_ID = ID.encode()
_NO_LINGER = struct.pack("ii", 1, 0)


class Book:
    """The scripts, and the log: everything that the connections share."""

    def __init__(self, *, log_max: int) -> None:
        self._log_max = log_max
        self.scripts: dict[str, Script] = {}
        self.log: list[Entry] = []
        self.held: list[Callable[[], None]] = []
        self.connections = 0
        self.connections_ever = 0
        self.requests = 0
        self._plans: dict[Asked, Plan] = {}
        self._default = Script()

    def plan(self, request: Asked) -> Plan:
        """How a request is answered; the same ones are planned once."""
        found = self._plans.get(request)
        if found is None:
            if len(self._plans) >= _PLANS_MAX:
                self._plans.clear()
            found = self._plans[request] = plan(self._script(request), request, self._models())
        return found

    def script_id(self, request: Asked) -> str:
        """Which script the model's name asks for."""
        name = request.model.rsplit("/", 1)[-1].removeprefix("script-")
        return name if name in self.scripts else ""

    def register(self, script: Script) -> None:
        """Take a script in, in place of an older one of its name."""
        self.scripts[script.id] = script
        self._plans.clear()

    def keep(self, entry: Entry) -> None:
        """Write a request into the log."""
        if len(self.log) < self._log_max:
            self.log.append(entry)

    def state(self) -> State:
        """The sums."""
        return State(
            requests=self.requests,
            open=sum(entry.ended_s is None for entry in self.log),
            held=len(self.held),
            connections=self.connections,
            billed_input=sum(entry.billed_input for entry in self.log),
            billed_output=sum(entry.billed_output for entry in self.log),
        )

    def release(self) -> int:
        """Let go everything that is held."""
        held, self.held = self.held, []
        for go_on in held:
            go_on()
        return len(held)

    def _script(self, request: Asked) -> Script:
        script = self.scripts.get(self.script_id(request), self._default)
        if request.script is None:
            return script
        own = msgspec.json.decode(request.script)
        return msgspec.convert(msgspec.to_builtins(script, str_keys=True) | own, Script)

    def _models(self) -> list[str]:
        return ["gpt-4o-mini", *(f"script-{name}" for name in self.scripts if name)]


class Connection(asyncio.Protocol):
    """One connection of a client; answers one request after the other."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._is_gone = False
        self._is_writable = True
        self._waiting: list[tuple[str, str, list[tuple[str, str]], bytes]] = []
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        # The answer under way.
        self._entry: Entry | None = None
        self._plan: Plan | None = None
        self._next = 0
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._id = b""

    # What the transport and the parser tell.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._book.connections += 1
        self._book.connections_ever += 1
        self._number = self._book.connections_ever

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        request = (method, self._url.decode(), self._headers, b"".join(self._body))
        self._url, self._headers, self._body = b"", [], []
        if self._plan is None:
            self._begin(*request)
        else:
            self._waiting.append(request)

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._plan is not None and self._timer is None:
            self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._is_gone = True
        self._book.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
        if self._entry is not None and self._entry.ended_s is None:
            self._entry.left_s = self._entry.ended_s = time.monotonic()
        if self._go_on in self._book.held:
            self._book.held.remove(self._go_on)
        self._plan = self._entry = None

    # One answer.

    def _begin(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
        if path.startswith("/_"):
            self._transport.write(control(self._book, path, body))
            return
        book = self._book
        try:
            request = asked(path, body)
            found = book.plan(request)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            request = Asked("", "", False, False, 1, None, 1, False, None)
            refusal = Script(status=400, error={"message": f"unreadable: {error}"})
            found = plan(refusal, request, [])
        book.requests += 1
        self._id = b"%024d" % book.requests
        self._entry = Entry(
            number=book.requests,
            connection=self._number,
            method=method,
            path=path,
            headers=headers,
            body=body[:_BODY_LOGGED_BYTES].decode("utf-8", "replace"),
            body_bytes=len(body),
            body_sha256=hashlib.sha256(body).hexdigest(),
            script=book.script_id(request),
            model=request.model,
            stream=request.stream,
            started_s=time.monotonic(),
        )
        book.keep(self._entry)
        self._plan, self._next, self._due_s = found, 0, self._loop.time()
        self._go_on()

    def _go_on(self) -> None:
        """Do the steps up to one that waits."""
        self._timer = None
        while (now := self._plan) is not None and not self._is_gone and self._is_writable:
            step = now.steps[self._next]
            self._next += 1
            match step.do:
                case Do.SEND:
                    self._send(step)
                case Do.WAIT:
                    self._due_s = max(self._due_s + step.seconds, self._loop.time())
                    self._timer = self._loop.call_at(self._due_s, self._go_on)
                    return
                case Do.HOLD:
                    self._book.held.append(self._go_on)
                    return
                case Do.END | Do.CLOSE | Do.CUT | Do.RESET:
                    self._end(step.do, now)
                    return

    def _send(self, step: Step) -> None:
        entry, now = self._entry, self._plan
        assert entry is not None
        assert now is not None
        self._transport.write(step.data.replace(_ID, self._id))
        if entry.first_s is None:
            entry.first_s = time.monotonic()
            entry.status = now.status
        entry.sent_bytes += step.body_bytes
        if step.body_bytes or step.deltas:
            entry.deltas = max(entry.deltas, step.deltas)
            entry.billed_input = now.tokens.input
            entry.billed_cached = now.tokens.cached
            entry.billed_reasoning = now.tokens.reasoning
            visible = now.tokens.output - now.tokens.reasoning
            share = visible * entry.deltas // now.deltas if now.deltas else visible
            entry.billed_output = now.tokens.reasoning + share

    def _end(self, how: Do, now: Plan) -> None:
        entry = self._entry
        assert entry is not None
        entry.ended_s = time.monotonic()
        entry.completed = now.is_whole
        self._plan = self._entry = None
        if how is Do.END:
            if self._waiting:
                self._begin(*self._waiting.pop(0))
            return
        if how is Do.RESET:
            linger = self._transport.get_extra_info("socket")
            linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            # What was written before is on its way; the reset comes a moment behind it.
            self._loop.call_later(0.005, self._transport.abort)
        else:
            self._transport.close()


def control(book: Book, path: str, body: bytes) -> bytes:
    """The answer to one of the vendor's own requests."""
    url = urlsplit(path)
    query = parse_qs(url.query)
    answer: object = None
    match url.path:
        case "/_script":
            book.register(msgspec.json.decode(body, type=Script))
        case "/_log":
            answer = book.log[int(query.get("since", ["0"])[0]) :]
        case "/_forget":
            book.log.clear()
        case "/_release":
            answer = book.release()
        case "/_state":
            answer = book.state()
        case _:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    told = msgspec.json.encode(answer)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(told) + told


async def listen(
    book: Book, *, host: str = "127.0.0.1", port: int = 0, reuse_port: bool = False
) -> asyncio.Server:
    """Accept connections; port 0 is any free one."""
    return await asyncio.get_running_loop().create_server(
        lambda: Connection(book), host, port, backlog=4_096, reuse_port=reuse_port
    )

"""One connection to a Redis server: commands out in one write, their answers back in order.

Anything odd closes it: a connection of which one is not sure what it will say next could give one
caller's answer to another.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

Answers = list[Any]


class WireError(Exception):
    """The server could not be reached, or let nobody in."""


def packed(words: Sequence[str | bytes | int]) -> bytes:
    """A command as it goes over the wire."""
    command: Any = tuple(words)  # the stub of pack_command knows only commands of one word
    return cast(bytes, hiredis.pack_command(command))


class Address:
    """Where a Redis server is and how it lets us in, from a redis://, rediss:// or unix:// URL."""

    def __init__(self, url: str) -> None:
        options: Mapping[str, Any] = parse_url(url)
        self.path: str = options.get("path", "")
        self.host: str = options.get("host", "localhost")
        self.port: int = options.get("port", 6379)
        is_tls = options.get("connection_class") is SSLConnection
        self.tls = _tls(options) if is_tls else None
        self._greeting: list[bytes] = []
        password: str = options.get("password", "")
        user: str = options.get("username", "")
        if password:
            words = ("AUTH", user, password) if user else ("AUTH", password)
            self._greeting.append(packed(words))
        if database := options.get("db"):
            self._greeting.append(packed(("SELECT", int(database))))
        # Without a password this asks whether the server wants one.
        self._greeting.append(packed(("PING",)))

    async def open(self, *, timeout_s: float) -> "Wire":
        """A connection that has been let in; `WireError` if there is none within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._opened()
        except (OSError, TimeoutError) as error:
            raise WireError(f"{type(error).__name__}: {error}") from error

    async def _opened(self) -> "Wire":
        loop = asyncio.get_running_loop()
        if self.path:
            _, wire = await loop.create_unix_connection(Wire, self.path)
        else:
            _, wire = await loop.create_connection(Wire, self.host, self.port, ssl=self.tls)
        try:
            await self._greet(wire)
        except BaseException:
            wire.close()
            raise
        return wire

    async def _greet(self, wire: "Wire") -> None:
        for answer in await wire.asked(b"".join(self._greeting), len(self._greeting)):
            if isinstance(answer, hiredis.ReplyError):
                raise WireError(str(answer))


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Verified, unless the URL says ssl_cert_reqs=none."""
    context = ssl.create_default_context(
        cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path")
    )
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context


class Wire(asyncio.Protocol):
    """A connection that carries one batch at a time. `closed` is done when it is no more."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._answers: Answers = []
        self._due = 0
        self._done: Callable[[Answers], None] = _nobody

    @property
    def is_busy(self) -> bool:
        """Whether a batch is under way."""
        return self._due > 0

    def send(self, commands: bytes, count: int, done: Callable[[Answers], None]) -> None:
        """Write `count` packed commands; `done` gets all their answers, or is never called."""
        if self._transport is None or self.closed.done():
            return
        assert not self._due, "one batch at a time"
        self._due, self._done = count, done
        self._transport.write(commands)

    async def ask(self, words: Sequence[str | bytes | int]) -> Any:
        """The answer to one command, an error being one, too; `WireError` if none comes."""
        (answer,) = await self.asked(packed(words), 1)
        return answer

    async def asked(self, commands: bytes, count: int) -> Answers:
        """Like `send`, and wait for the answers; `WireError` if the connection is closed."""
        answered: asyncio.Future[Answers | None] = asyncio.get_running_loop().create_future()

        def took(answers: Answers | None) -> None:
            if not answered.done():  # nobody waits any more
                answered.set_result(answers)

        self.closed.add_done_callback(lambda _: took(None))
        self.send(commands, count, took)
        answers = await answered
        if answers is None:
            raise WireError("the server closed the connection")
        return answers

    def close(self) -> None:
        """Drop the connection now; whatever was under way is not answered."""
        if self._transport is not None:
            self._transport.abort()
        self._lost()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why does not matter
        """End."""
        self._lost()

    def data_received(self, data: bytes) -> None:
        """Take what came; when the batch is complete, hand its answers over."""
        reader, answers = self._reader, self._answers
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _MORE:
                answers.append(answer)
        except hiredis.ProtocolError:
            self.close()
            return
        if len(answers) < self._due:
            return
        if len(answers) > self._due or self.closed.done():
            self.close()
            return
        done, self._done = self._done, _nobody
        self._answers, self._due = [], 0
        done(answers)

    def _lost(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


_MORE = object()


def _nobody(_: Answers) -> None:
    """No batch is under way."""

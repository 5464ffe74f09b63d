"""A vendor's answer: its head, and its body as it comes, decoded.

Once the last byte has come the connection is no longer the answer's; until then `abort` or
`release` must be called, or the connection stays open.
"""

import asyncio
from typing import Protocol

from gateway.upstream.decoding import CorruptEncoding, Decoder, decoder
from gateway.upstream.errors import UpstreamGarbled
from gateway.upstream.inbox import Inbox


class Link(Protocol):
    """What an answer needs of the connection it comes on."""

    is_paused: bool  # it reads no more: too much waits in the inbox it carries

    def wait(self, inbox: Inbox, seconds: float) -> "asyncio.Future[None]":
        """Done when the inbox has something new; too long is its failure."""

    def drained(self, inbox: Inbox) -> None:
        """There is room in the inbox again."""

    def abandon(self, inbox: Inbox) -> None:
        """Close the connection if the inbox is still its own."""


class Answer:
    """The final answer to one request; `read` until b"", then `release`."""

    __slots__ = (
        "_decoder",
        "_idle_s",
        "_inbox",
        "_link",
        "content_type",
        "is_event_stream",
        "named",
        "reused",
        "status",
    )

    def __init__(self, inbox: Inbox, link: Link, *, idle_s: float, reused: bool) -> None:
        self._inbox, self._link, self._idle_s = inbox, link, idle_s
        self.status = inbox.status
        self.reused = reused  # the connection had carried an earlier request
        # The headers by name; of one that is repeated, the last.
        named = self.named = inbox.named
        self.content_type = named.get(b"content-type", b"").decode("latin-1")
        self.is_event_stream = inbox.is_event_stream
        self._decoder: Decoder | None = None
        if b"content-encoding" in named:
            self._decoder = self._chosen_decoder(named[b"content-encoding"].decode("latin-1"))

    def header(self, name: bytes) -> str | None:
        """The text of one of `named`."""
        value = self.named.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def is_over(self) -> bool:
        """All was read: `read` would give b"". Never said of an answer that is decoded."""
        inbox = self._inbox
        return inbox.is_complete and not inbox.chunks and self._decoder is None

    def rest(self) -> bytes | None:
        """All there is to read, if it has come and needs no decoding; None: `read` it."""
        inbox = self._inbox
        return inbox.take() if inbox.is_complete and self._decoder is None else None

    async def read(self) -> bytes:
        """What has come since the last time, decoded; waits if that is nothing. b"" is the end.

        Raises `UpstreamTimeout` when the vendor is silent for `idle_s`, `UpstreamCut` when the
        connection ends first, `UpstreamGarbled` when the bytes cannot be read. What came before is
        given first. A cancelled read closes the connection.
        """
        inbox = self._inbox
        while True:
            if self._decoder is not None:
                chunk = self._decoded(self._decoder)
                if chunk:
                    return chunk
            elif inbox.chunks:
                chunk = inbox.take()
                if self._link.is_paused:
                    self._link.drained(inbox)
                return chunk
            if inbox.is_complete:
                self._end()
                return b""
            if inbox.failure is not None:
                raise inbox.failure
            try:
                await self._link.wait(inbox, self._idle_s)
            except BaseException:
                self._link.abandon(inbox)
                raise

    def release(self) -> None:
        """Done with it. What was not read to its end is closed: another must not read the rest."""
        self.abort()

    def abort(self) -> None:
        """Close the connection now, if the answer is still coming on it; the vendor sees it."""
        if not self._inbox.is_complete:
            self._link.abandon(self._inbox)

    def _decoded(self, decoder: Decoder) -> bytes:
        try:
            while decoder.has_more or self._inbox.chunks:
                chunk = decoder.feed(b"" if decoder.has_more else self._inbox.take())
                if not decoder.has_more:
                    self._link.drained(self._inbox)
                if chunk:
                    return chunk
        except CorruptEncoding as error:
            raise self._garbled(error) from error
        return b""

    def _end(self) -> None:
        if self._decoder is not None:
            try:
                self._decoder.end()
            except CorruptEncoding as error:
                raise self._garbled(error) from error

    def _chosen_decoder(self, content_encoding: str) -> Decoder | None:
        try:
            return decoder(content_encoding)
        except CorruptEncoding as error:
            raise self._garbled(error) from error

    def _garbled(self, error: CorruptEncoding) -> UpstreamGarbled:
        self.abort()
        return UpstreamGarbled(
            f"the answer cannot be decoded: {error}",
            phase="body",
            sent=True,
            reused=self.reused,
            answered=True,
        )

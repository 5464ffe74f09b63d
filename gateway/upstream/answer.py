"""A vendor's answer: its head, and its body as it comes, decoded.

Once the last byte has come the connection is no longer the answer's; until then `abort` or
`release` must be called, or the connection stays open.
"""

from typing import Protocol

from gateway.upstream.decoding import CorruptEncoding, Decoder, decoder
from gateway.upstream.errors import UpstreamGarbled
from gateway.upstream.exchange import Exchange

# Of one connection, or no longer true of what `read` gives.
_NOT_THE_ANSWERS = frozenset(
    {
        b"connection",
        b"content-encoding",
        b"content-length",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class Link(Protocol):
    """What an answer needs of the connection it comes on."""

    async def wait(self, exchange: Exchange, seconds: float) -> None:
        """Suspend until the exchange has something new; too long is its failure."""

    def drained(self, exchange: Exchange) -> None:
        """There is room in the exchange again."""

    def abandon(self, exchange: Exchange) -> None:
        """Close the connection if the exchange is still its own."""


class Answer:
    """The final answer to one request; `read` until b"", then `release`."""

    __slots__ = (
        "_decoder",
        "_exchange",
        "_headers",
        "_idle_s",
        "_link",
        "content_type",
        "reused",
        "status",
    )

    def __init__(self, exchange: Exchange, link: Link, *, idle_s: float, reused: bool) -> None:
        self._exchange, self._link, self._idle_s = exchange, link, idle_s
        self.status = exchange.status
        self.reused = reused  # the connection had carried an earlier request
        head = {name.lower(): value for name, value in exchange.head}
        self.content_type = head.get(b"content-type", b"").decode("latin-1")
        self._headers: list[tuple[str, str]] | None = None
        self._decoder: Decoder | None = None
        if b"content-encoding" in head:
            self._decoder = self._chosen_decoder(head[b"content-encoding"].decode("latin-1"))

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, in the vendor's order.

        Those that speak of the connection, the framing or the encoding are left out: they are not
        true of what `read` gives.
        """
        if self._headers is None:
            named = {
                word.strip().lower()
                for name, value in self._exchange.head
                if name.lower() == b"connection"
                for word in value.split(b",")
            }
            self._headers = [
                (name.lower().decode("latin-1"), value.decode("latin-1"))
                for name, value in self._exchange.head
                if name.lower() not in _NOT_THE_ANSWERS and name.lower() not in named
            ]
        return self._headers

    @property
    def is_whole(self) -> bool:
        """The last byte has come: `read` will not suspend any more."""
        return self._exchange.is_complete

    async def read(self) -> bytes:
        """What has come since the last time, decoded; waits if that is nothing. b"" is the end.

        Raises `UpstreamTimeout` when the vendor is silent for `idle_s`, `UpstreamCut` when the
        connection ends first, `UpstreamGarbled` when the bytes cannot be read. What came before is
        given first. A cancelled read closes the connection.
        """
        exchange = self._exchange
        while True:
            if exchange.chunks or self._decoder is not None:
                chunk = self._taken()
                if chunk:
                    return chunk
            if exchange.is_complete:
                self._end()
                return b""
            if exchange.failure is not None:
                raise exchange.failure
            await self._link.wait(exchange, self._idle_s)

    def release(self) -> None:
        """Done with it. What was not read to its end is closed: another must not read the rest."""
        self._link.abandon(self._exchange)

    def abort(self) -> None:
        """Close the connection now, if the answer is still coming on it; the vendor sees it."""
        self._link.abandon(self._exchange)

    def _taken(self) -> bytes:
        if self._decoder is None:
            chunk = self._exchange.take()
            self._link.drained(self._exchange)
            return chunk
        return self._decoded(self._decoder)

    def _decoded(self, decoder: Decoder) -> bytes:
        try:
            while decoder.has_more or self._exchange.chunks:
                if decoder.has_more:
                    chunk = decoder.feed(b"")
                else:
                    chunk = decoder.feed(self._exchange.take())
                if not decoder.has_more:
                    self._link.drained(self._exchange)
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

"""One request on a connection, and what has come of its answer and was not read yet."""

import asyncio

from gateway.upstream.errors import UpstreamError


class Inbox:
    """A bounded box between the connection, which fills it, and the answer, which empties it.

    It outlives its connection: a whole answer stays readable when the connection is at work for
    somebody else.
    """

    __slots__ = (
        "chunks",
        "failure",
        "head",
        "is_bodyless",
        "is_complete",
        "is_event_stream",
        "named",
        "size",
        "status",
        "waiter",
    )

    def __init__(self, *, is_bodyless: bool) -> None:
        self.is_bodyless = is_bodyless  # the request was HEAD
        self.status = 0  # 0 until the head of the final answer is complete
        # As it came; the names in lower case.
        self.head: list[tuple[bytes, bytes]] = []
        # The same by name, once it is complete: of a name that is repeated, the last.
        self.named: dict[bytes, bytes] = {}
        self.is_event_stream = False  # says the head
        self.chunks: list[bytes] = []
        self.size = 0  # bytes in chunks
        self.is_complete = False  # the answer ended cleanly
        self.failure: UpstreamError | None = None
        self.waiter: asyncio.Future[None] | None = None

    @property
    def ends_with_connection(self) -> bool:
        """The answer has no length of its own: it ends when the connection does."""
        named = self.named
        return (
            bool(self.status)
            and b"content-length" not in named
            and b"transfer-encoding" not in named
        )

    def take(self) -> bytes:
        """Everything that has come and was not taken yet."""
        chunks = self.chunks
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.size = 0
        return chunk

    def wake(self) -> None:
        """Let the one who waits look again."""
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

"""What one turn of the event loop has to send, handed to the system together at its end.

Each write to a socket wakes whoever reads there, and to wake a process that sleeps costs more than
the write. Writes with work of ours between them wake it each time; writes in a row wake it once.
"""

import asyncio
import logging

log = logging.getLogger(__name__)

BYTES_MAX = 64 * 1024
"""More than this does not wait: who writes much without pause must see that nobody takes it."""


class Outbox:
    """The writes of a turn, in their order. Used within one event loop.

    All that goes to a transport goes through its outbox, or what is put later may leave earlier.
    The first write after a turn that had no other leaves at once: there is nothing to wait for.
    """

    __slots__ = ("_count", "_is_busy", "_loop", "_size", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._size = 0  # bytes in it
        self._count = 0  # writes of this turn
        self._is_busy = False  # the last turn that wrote had more than one

    def put(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write this soon: once everything that is ready now has had its turn."""
        self._count += 1
        if self._count == 1:
            self._loop.call_soon(self._end_turn)
            if not self._is_busy:
                transport.write(data)
                return
        self._waiting.append((transport, data))
        self._size += len(data)
        if self._size > BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write everything now, as before a connection is closed."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        for transport, data in waiting:
            if transport.is_closing():
                continue  # its protocol is told, or has closed it itself
            try:
                transport.write(data)
            except Exception:  # one connection's trouble must not keep the bytes of the others
                log.exception("a connection cannot be written to")
                transport.abort()

    def _end_turn(self) -> None:
        self._is_busy, self._count = self._count > 1, 0
        if self._waiting:
            self.flush()

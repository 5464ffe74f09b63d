"""What a client was sent, copied for who chose to have it kept."""

SIDE_BYTES_MAX = 256 * 1024  # of a request, and of an answer; what is beyond is not kept


class Copy:
    """What a client is sent, as far as it is kept."""

    __slots__ = ("_parts", "_size", "is_cut")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self.is_cut = False

    def add(self, data: bytes) -> None:
        """It was sent this besides."""
        room = SIDE_BYTES_MAX - self._size
        if len(data) > room:
            data, self.is_cut = data[:room], True
        if data:
            self._parts.append(data)
            self._size += len(data)

    @property
    def data(self) -> bytes:
        """All that is kept of it."""
        return b"".join(self._parts)

"""Server-sent events out of bytes, the same ones wherever the chunks break.

Lines end with CRLF, LF or CR, an event ends with a blank line or with the stream, a BOM may come
first. Every byte fed comes back exactly once and in order in the `raw` of the blocks, so who wants
to pass a stream on unchanged joins them. Nothing raises.
"""

import re

import msgspec

EVENT_BYTES_MAX = 16 * 1024 * 1024
"""Image events reach several MiB; what is longer passes by unread."""

BOM = b"\xef\xbb\xbf"
_LF = 10

# Possessive, so that one CRLF is never taken for a CR and an LF.
_BLANK_LINE = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")


class Block(msgspec.Struct, frozen=True, gc=False):
    """One event, or comments alone, with the blank line that ends it."""

    raw: bytes
    data: bytes | None  # its data lines, joined by LF; None if it has none or was too long to read
    event: bytes = b""  # its name; empty if it has none


class SseReader:
    """Splits one stream. `pending` is the number of bytes fed that are in no block yet."""

    __slots__ = ("_bare", "_first", "_rest", "_scanned", "_skipping", "overlong", "pending")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._scanned = 0  # no blank line begins before this offset of the rest
        self._bare = True  # no CR in the rest
        self._first = True
        self._skipping = False  # inside an event that is too long
        self.pending = 0
        self.overlong = 0  # events that were too long to read

    def feed(self, chunk: bytes) -> list[Block]:
        """The blocks completed by `chunk`."""
        if not self.pending and b"\r" not in chunk and not self._first:
            # The case of nearly every chunk: it is exactly one event, of one line or of two.
            last, line = len(chunk) - 2, chunk.find(b"\n")
            if line == last and chunk[-1] == _LF and chunk.startswith(b"data: "):
                return [Block(chunk, chunk[6:-2])]
            two = chunk.startswith(b"event: ") and chunk.find(b"\n", line + 1) == last
            if two and chunk[-1] == _LF and chunk.startswith(b"data: ", line + 1):
                return [Block(chunk, chunk[line + 7 : -2], chunk[7:line])]
        self._rest += chunk
        self._bare = self._bare and b"\r" not in chunk
        blocks = self._take()
        if len(self._rest) > EVENT_BYTES_MAX:
            if not self._skipping:
                self._skipping = True
                self.overlong += 1
            # The last three bytes may be the beginning of a blank line.
            blocks.append(Block(self._cut(len(self._rest) - 3), None))
        self.pending = len(self._rest)
        return blocks

    def end(self) -> list[Block]:
        """The blocks that no blank line ended: at most two, if the stream ends with a lone CR."""
        blocks = self._take(ended=True)
        if self._rest:
            blocks.append(self._finish(len(self._rest)))
        self.pending = 0
        return blocks

    def _take(self, *, ended: bool = False) -> list[Block]:
        """Cut all complete blocks off the rest."""
        blocks = []
        rest = self._rest
        # A CR at the very end may be half of a CRLF, so it must wait for what follows.
        end = len(rest) - (rest[-1:] == b"\r" and not ended)
        start, scan = 0, self._scanned
        while True:
            if self._bare:
                found = rest.find(b"\n\n", scan)
                stop = found + 2
            else:
                match = _BLANK_LINE.search(rest, scan, end)
                found, stop = match.span() if match else (-1, -1)
            if found < 0:
                break
            blocks.append(self._finish(stop, start))
            start = scan = stop
        if start:
            del rest[:start]
            self._bare = b"\r" not in rest
        self._scanned = max(0, len(rest) - 3)
        return blocks

    def _finish(self, stop: int, start: int = 0) -> Block:
        raw = bytes(self._rest[start:stop])
        if self._skipping:
            self._skipping = False
            return Block(raw, None)
        return self._block(raw)

    def _cut(self, count: int) -> bytes:
        raw = bytes(self._rest[:count])
        del self._rest[:count]
        self._scanned = 0
        return raw

    def _block(self, raw: bytes) -> Block:
        if self._first:
            self._first = False
            return parsed(raw, raw.removeprefix(BOM))
        return parsed(raw, raw)


def parsed(raw: bytes, text: bytes) -> Block:
    """The block `raw` whose lines are those of `text`."""
    data: list[bytes] = []
    event = b""
    lines = text.split(b"\n") if b"\r" not in text else _LINE_END.split(text)
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event":
            event = value.removeprefix(b" ")
    return Block(raw, b"\n".join(data) if data else None, event)

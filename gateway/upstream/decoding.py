"""Undo the compression of answers, piece by piece, never making more output at once than a cap.

Vendors are asked for `identity`; some compress all the same.
"""

import zlib
from collections.abc import Callable
from typing import Protocol

import brotli  # type: ignore[import-untyped]  # ships without types
import zstandard

OUTPUT_BYTES_MAX = 256 * 1024  # what one step may make of however little input
_ZSTD_WINDOW_BYTES_MAX = 8 * 1024 * 1024  # what RFC 9659 allows for HTTP
# Four bytes of zstd can stand for 128 KiB, and its decoder takes no output limit: the input is cut.
_ZSTD_INPUT_BYTES_MAX = 32


class CorruptEncoding(Exception):
    """The bytes are not what their content-encoding says."""


class Decoder(Protocol):
    """One answer's decompressor."""

    def feed(self, data: bytes) -> bytes:
        """The next output. Called with b"" for as long as `has_more`, then with new input."""

    @property
    def has_more(self) -> bool:
        """Input is kept back that may give output without any new input."""

    def end(self) -> None:
        """The input is over: raises `CorruptEncoding` if it ended in the middle."""


class _Zlib:
    """gzip (any number of members) and deflate (with the zlib header, or raw as some send it)."""

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._inflate = zlib.decompressobj(window_bits)
        self._rest = b""
        self._is_untouched = True

    @property
    def has_more(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        data = self._rest + data
        if not data:
            return b""
        if self._inflate.eof:
            self._inflate = zlib.decompressobj(self._window_bits)
        try:
            output = self._inflate.decompress(data, OUTPUT_BYTES_MAX)
        except zlib.error as error:
            if not self._is_untouched or self._window_bits != zlib.MAX_WBITS:
                raise CorruptEncoding(str(error)) from error
            self._window_bits, self._rest, self._is_untouched = -zlib.MAX_WBITS, b"", False
            self._inflate = zlib.decompressobj(self._window_bits)
            return self.feed(data)
        self._is_untouched = False
        self._rest = self._inflate.unconsumed_tail or self._inflate.unused_data
        return output

    def end(self) -> None:
        if not self._inflate.eof and not self._is_untouched:
            raise CorruptEncoding("the compressed body ends in the middle")


class _Brotli:
    def __init__(self) -> None:
        self._brotli = brotli.Decompressor()
        self._is_untouched = True

    @property
    def has_more(self) -> bool:
        return not self._brotli.can_accept_more_data()

    def feed(self, data: bytes) -> bytes:
        if data:
            self._is_untouched = False
        try:
            output: bytes = self._brotli.process(data, output_buffer_limit=OUTPUT_BYTES_MAX)
        except brotli.error as error:
            raise CorruptEncoding(str(error)) from error
        return output

    def end(self) -> None:
        if not self._is_untouched and not self._brotli.is_finished():
            raise CorruptEncoding("the compressed body ends in the middle")


class _Zstd:
    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
        self._frame = self._decompressor.decompressobj(write_size=OUTPUT_BYTES_MAX)
        self._rest = b""
        self._is_untouched = True

    @property
    def has_more(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        view = memoryview(self._rest + data)
        output: list[bytes] = []
        output_bytes = position = 0
        while position < len(view) and output_bytes < OUTPUT_BYTES_MAX:
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj(write_size=OUTPUT_BYTES_MAX)
            piece = view[position : position + _ZSTD_INPUT_BYTES_MAX]
            try:
                output.append(self._frame.decompress(piece))
            except zstandard.ZstdError as error:
                raise CorruptEncoding(str(error)) from error
            output_bytes += len(output[-1])
            position += len(piece) - len(self._frame.unused_data)
            self._is_untouched = False
        self._rest = bytes(view[position:])
        return b"".join(output)

    def end(self) -> None:
        if not self._frame.eof and not self._is_untouched:
            raise CorruptEncoding("the compressed body ends in the middle")


_DECODERS: dict[str, Callable[[], Decoder]] = {
    "gzip": lambda: _Zlib(zlib.MAX_WBITS + 16),
    "x-gzip": lambda: _Zlib(zlib.MAX_WBITS + 16),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstd,
}


def decoder(content_encoding: str) -> Decoder | None:
    """The decoder for a content-encoding header; None for identity.

    Raises `CorruptEncoding` for one we do not know, and for several on top of each other.
    """
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in _DECODERS:
        raise CorruptEncoding(f"the content-encoding {name[:40]!r} is unknown")
    return _DECODERS[name]()

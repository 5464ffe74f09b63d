"""Undo the compression of answers, piece by piece, never making more output at once than a cap.

Vendors are asked for `identity`; some compress all the same.
"""

import zlib
from collections.abc import Callable
from typing import Protocol

import brotli  # type: ignore[import-untyped]  # ships without types
import zstandard

OUTPUT_BYTES_MAX = 256 * 1024  # what one step may make of however little input
_ZLIB_HEADER_BYTES = 2
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
    """gzip (any number of members), or what else `window_bits` means to zlib."""

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._inflate = zlib.decompressobj(window_bits)
        self._rest = b""
        self._is_untouched = True
        self._was_capped = False

    @property
    def has_more(self) -> bool:
        return self._was_capped or bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        data = self._rest + data
        if data and self._inflate.eof:
            self._inflate = zlib.decompressobj(self._window_bits)
        try:
            output = self._inflate.decompress(data, OUTPUT_BYTES_MAX)
        except zlib.error as error:
            raise CorruptEncoding(str(error)) from error
        self._is_untouched = self._is_untouched and not data
        self._rest = self._inflate.unconsumed_tail or self._inflate.unused_data
        # All input may be taken while the end of its output is still inside.
        self._was_capped = len(output) >= OUTPUT_BYTES_MAX
        return output

    def end(self) -> None:
        if not self._inflate.eof and not self._is_untouched:
            raise CorruptEncoding("the compressed body ends in the middle")


class _Deflate:
    """With the zlib header that RFC 9110 asks for, or raw as some send it."""

    def __init__(self) -> None:
        self._start = b""
        self._zlib: _Zlib | None = None

    @property
    def has_more(self) -> bool:
        return self._zlib is not None and self._zlib.has_more

    def feed(self, data: bytes) -> bytes:
        if self._zlib is None:
            self._start += data
            if len(self._start) < _ZLIB_HEADER_BYTES:
                return b""
            first, second = self._start[:_ZLIB_HEADER_BYTES]
            # RFC 1950: method 8, and the two bytes together are a multiple of 31.
            has_header = first & 0x0F == zlib.DEFLATED and (first << 8 | second) % 31 == 0
            self._zlib = _Zlib(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
            data = self._start
        return self._zlib.feed(data)

    def end(self) -> None:
        if self._zlib is not None:
            self._zlib.end()
        elif self._start:
            raise CorruptEncoding("the compressed body ends in the middle")


class _Brotli:
    def __init__(self) -> None:
        self._brotli = brotli.Decompressor()
        self._is_untouched = True
        self._was_capped = False

    @property
    def has_more(self) -> bool:
        return self._was_capped or not self._brotli.can_accept_more_data()

    def feed(self, data: bytes) -> bytes:
        if data:
            self._is_untouched = False
        try:
            output: bytes = self._brotli.process(data, output_buffer_limit=OUTPUT_BYTES_MAX)
        except brotli.error as error:
            raise CorruptEncoding(str(error)) from error
        # It may say that it takes more input while it still has output for what it took.
        self._was_capped = len(output) >= OUTPUT_BYTES_MAX
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
    "deflate": _Deflate,
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

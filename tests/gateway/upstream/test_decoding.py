"""Compressed answers: decoded wherever they break, never more at once than the cap."""

import gzip
import itertools
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]  # ships without types
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream import UpstreamGarbled
from gateway.upstream.decoding import OUTPUT_BYTES_MAX, CorruptEncoding, decoder
from tests.gateway.upstream.wire import whole, wire

TEXT = b"".join(b'data: {"n":%d}\n\n' % number for number in range(3_000))


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=9).compress(data)


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip, two members": ("gzip", lambda data: gzip.compress(data[:70]) + gzip.compress(data[70:])),
    "x-gzip": ("X-GZip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate, raw": ("deflate", _raw_deflate),
    "br": ("br", lambda data: bytes(brotli.compress(data, quality=5))),
    "zstd": ("zstd", _zstd),
    "zstd, two frames": ("zstd", lambda data: _zstd(data[:70]) + _zstd(data[70:])),
}
every_encoding = pytest.mark.parametrize("name", ENCODERS)


def decoded(encoding: str, chunks: list[bytes]) -> bytes:
    """Feed everything and look at every output."""
    ours = decoder(encoding)
    assert ours is not None
    output = []
    for chunk in chunks:
        output.append(ours.feed(chunk))
        while ours.has_more:
            output.append(ours.feed(b""))
    ours.end()
    return b"".join(output)


@every_encoding
@given(cuts=st.lists(st.integers(1, 20_000), max_size=9))
def test_the_output_does_not_depend_on_where_the_chunks_break(name: str, cuts: list[int]) -> None:
    encoding, encode = ENCODERS[name]
    packed = encode(TEXT)
    borders = [0, *sorted(cut for cut in set(cuts) if cut < len(packed)), len(packed)]
    chunks = [packed[start:stop] for start, stop in itertools.pairwise(borders)]
    assert decoded(encoding, chunks) == TEXT


@every_encoding
def test_byte_by_byte_gives_the_same(name: str) -> None:
    encoding, encode = ENCODERS[name]
    packed = encode(TEXT)
    assert decoded(encoding, [packed[i : i + 1] for i in range(len(packed))]) == TEXT


@every_encoding
def test_an_empty_body_is_an_empty_answer(name: str) -> None:
    encoding, encode = ENCODERS[name]
    assert decoded(encoding, []) == b""
    assert decoded(encoding, [encode(b"")]) == b""


@every_encoding
def test_a_body_that_ends_in_the_middle_is_corrupt(name: str) -> None:
    encoding, encode = ENCODERS[name]
    with pytest.raises(CorruptEncoding):
        decoded(encoding, [encode(TEXT)[:-9]])


@every_encoding
def test_noise_is_corrupt(name: str) -> None:
    encoding, _ = ENCODERS[name]
    with pytest.raises(CorruptEncoding):
        decoded(encoding, [b"\xff\xfenot compressed at all" * 20])


@every_encoding
@pytest.mark.parametrize("extra", range(-3, 4))
def test_an_output_as_long_as_the_cap_is_not_cut(name: str, extra: int) -> None:
    encoding, encode = ENCODERS[name]
    text = bytes(OUTPUT_BYTES_MAX + extra * 61)
    assert decoded(encoding, [encode(text)]) == text


@every_encoding
def test_a_bomb_is_given_in_pieces_no_larger_than_the_cap(name: str) -> None:
    encoding, encode = ENCODERS[name]
    packed = encode(bytes(64 * 1024 * 1024))
    ours = decoder(encoding)
    assert ours is not None
    sizes = [len(ours.feed(packed))]
    while ours.has_more:
        sizes.append(len(ours.feed(b"")))
    assert sum(sizes) == 64 * 1024 * 1024
    # zstd and brotli decode whole blocks: the cap may be passed by one step's worth of them.
    assert max(sizes) <= OUTPUT_BYTES_MAX + 1024 * 1024


@pytest.mark.parametrize("name", ["", "identity", " Identity "])
def test_identity_needs_no_decoder(name: str) -> None:
    assert decoder(name) is None


@pytest.mark.parametrize("name", ["lzma", "gzip, br", "aws-chunked"])
def test_an_encoding_we_do_not_know_is_refused(name: str) -> None:
    with pytest.raises(CorruptEncoding):
        decoder(name)


@every_encoding
async def test_an_answer_compressed_unasked_is_read_as_if_it_were_not(name: str) -> None:
    encoding, encode = ENCODERS[name]
    packed = encode(TEXT)
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
        await peer.answer(head % (encoding.encode(), len(packed)) + packed)
        answer = await call
        assert await whole(answer) == TEXT


async def test_events_compressed_one_by_one_are_given_one_by_one() -> None:
    packer = zlib.compressobj(wbits=31)
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        answer = await call
        for number in range(5):
            event = b"data: %d\n\n" % number
            packed = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
            await peer.send(b"%x\r\n%b\r\n" % (len(packed), packed))
            assert await answer.read() == event


@pytest.mark.parametrize("body", [b"not gzip at all", gzip.compress(TEXT)[:-4]])
async def test_a_corrupt_body_is_garbled_and_its_connection_gone(body: bytes) -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        await peer.answer(head % len(body) + body)
        with pytest.raises(UpstreamGarbled) as caught:
            await whole(await call)
        assert caught.value.phase == "body"

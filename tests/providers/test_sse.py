"""Server-sent events, wherever the chunks break."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.sse import EVENT_BYTES_MAX, Block, SseReader

STREAM = (
    b"\xef\xbb\xbf: hello\n\n"
    b"data: 1\n\n"
    b"event: two\ndata: 2\n\n"
    b"data:3a\ndata: 3b\nid: 7\nretry: 10\n\n"
    b"\n"
    b": only a comment\n\n"
    b"data\n\n"
    b'data: {"text": "\xc3\xa9 \xe4\xb8\xad"}\n\n'
    b"event: nothing\n\n"
    b"data: last"
)
EVENTS = [
    (None, b""),
    (b"1", b""),
    (b"2", b"two"),
    (b"3a\n3b", b""),
    (None, b""),
    (b"", b""),
    (b'{"text": "\xc3\xa9 \xe4\xb8\xad"}', b""),
    (None, b"nothing"),
    (b"last", b""),
]


def read(chunks: list[bytes]) -> list[Block]:
    reader = SseReader()
    blocks = [block for chunk in chunks for block in reader.feed(chunk)]
    return [*blocks, *reader.end()]


def events(blocks: list[Block]) -> list[tuple[bytes | None, bytes]]:
    return [(block.data, block.event) for block in blocks]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_the_events_do_not_depend_on_where_the_chunks_break(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    for at in range(len(stream) + 1):
        blocks = read([stream[:at], stream[at:]])

        assert events(blocks) == EVENTS
        assert b"".join(block.raw for block in blocks) == stream


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_the_events_are_the_same_byte_by_byte(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)

    assert events(read([stream[at : at + 1] for at in range(len(stream))])) == EVENTS


@given(st.lists(st.binary(max_size=6).map(lambda b: b), max_size=30), st.data())
def test_any_bytes_come_back_whole_and_in_the_same_blocks(
    parts: list[bytes], data: st.DataObject
) -> None:
    ends = data.draw(st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n"]), max_size=30))
    stream = b"".join(a + b for a, b in zip(parts, ends, strict=False))
    whole = read([stream])
    at = data.draw(st.integers(0, len(stream)))
    further = data.draw(st.integers(at, len(stream)))

    blocks = read([stream[:at], stream[at:further], stream[further:]])

    assert blocks == whole
    assert b"".join(block.raw for block in blocks) == stream


def test_an_event_is_told_as_soon_as_its_blank_line_is_there() -> None:
    reader = SseReader()

    assert reader.feed(b"data: 1\n") == []
    assert reader.pending == 8
    assert [block.data for block in reader.feed(b"\n")] == [b"1"]
    assert reader.pending == 0


def test_a_cr_at_the_end_of_a_chunk_may_be_half_of_a_line_end() -> None:
    reader = SseReader()

    assert reader.feed(b"data: 1\r\n\r") == []
    assert [block.raw for block in reader.feed(b"\ndata: 2")] == [b"data: 1\r\n\r\n"]
    assert [block.data for block in reader.end()] == [b"2"]


def test_a_crlf_is_never_taken_for_two_line_ends() -> None:
    assert events(read([b"data: 1\r\ndata: 2\r\n\r\n"])) == [(b"1\n2", b"")]


def test_a_bom_is_one_at_the_beginning_only() -> None:
    chunks = [b"data: 1\n\n", b"\xef\xbb\xbfdata: 2\n\n"]

    assert [block.data for block in read(chunks)] == [b"1", None]
    assert [block.data for block in read(chunks[::-1])] == [b"2", b"1"]


def test_one_chunk_may_hold_many_events_and_a_part() -> None:
    reader = SseReader()

    assert [b.data for b in reader.feed(b"data: 1\n\ndata: 2\n\nda")] == [b"1", b"2"]
    assert [b.data for b in reader.feed(b"ta: 3\n\n")] == [b"3"]


def test_an_event_that_is_too_long_passes_unread_and_the_next_is_read() -> None:
    reader = SseReader()
    piece = b"x" * (1024 * 1024)
    sent = [b"data: " + piece, *[piece] * (EVENT_BYTES_MAX // len(piece) + 2)]
    blocks = [block for chunk in sent for block in reader.feed(chunk)]
    blocks += reader.feed(b"\n\ndata: next\n\n")

    assert [block.data for block in blocks if block.data is not None] == [b"next"]
    assert sum(len(block.raw) for block in blocks) == sum(map(len, sent)) + 14
    assert reader.overlong == 1
    assert reader.pending == 0


def test_an_event_of_several_megabytes_is_read() -> None:
    data = b"y" * (5 * 1024 * 1024)
    stream = b"data: " + data + b"\n\n"

    assert [b.data for b in read([stream[:65_536], stream[65_536:]])] == [data]

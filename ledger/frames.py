"""The journal's file format: frames that outlive damage to their neighbours, and what is in them.

A frame is a marker and its kind (4 bytes), the length of the body (4), a checksum (4), the body.
A reader that meets damage looks for the next marker and goes on. The checksums are seeded with the
journal's name, which holds randomness: no text that a client sends can pass for a frame.
Bodies are msgpack arrays that may only grow at the end, so that an older reader reads a newer file.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from ledger.admission import Cap, End, Hold
from ledger.money import Nanos
from ledger.record import EndKind

DISPATCHED, FINISHED, PROVEN = b"D", b"F", b"P"
DAMAGED = b""
"""The kind of a stretch that could not be read."""

BODY_BYTES_MAX = 1 << 20

_MARKER = b"\xc1TG"  # 0xC1 occurs neither in UTF-8 nor as a type of msgpack: rare by construction
_HEAD = struct.Struct("<4sII")


class Frame(NamedTuple):
    """One frame and the stretch of the file it takes; of a damaged stretch the body is empty."""

    kind: bytes
    start: int
    end: int
    body: bytes


class OpenCall(NamedTuple):
    """A call that was sent to its vendor and has no end yet."""

    call_id: bytes
    partition: int
    wallet: str
    held: int
    caps: tuple[Cap, ...]
    ticket: bytes  # the record as far as it was known

    @classmethod
    def of(cls, hold: Hold) -> "OpenCall":
        """The call that this was held for."""
        call_id, partition, wallet, amount, caps = hold[:5]
        return cls(call_id, partition, wallet, amount, caps, hold.ticket)

    def lost(self, charge: Nanos) -> End:
        """Its end, if the gateway that sent it is gone."""
        return End(
            self.call_id, self.partition, self.wallet, EndKind.LOST, charge, self.ticket, self.caps
        )


class Mark(NamedTuple):
    """A position in a journal: before it everything is proven."""

    segment: int
    offset: int


class Framing:
    """Makes and finds the frames of the journal of this name."""

    def __init__(self, name: str) -> None:
        self._seeds = {
            _MARKER + kind: zlib.crc32(kind + name.encode())
            for kind in (DISPATCHED, FINISHED, PROVEN)
        }
        self._dispatched = self._seeds[_MARKER + DISPATCHED]
        self._finished = self._seeds[_MARKER + FINISHED]

    def dispatched(self, call: OpenCall) -> bytes:
        """The frame that says: this call goes to its vendor now."""
        body = _encode(call)
        return _HEAD.pack(b"\xc1TGD", len(body), zlib.crc32(body, self._dispatched)) + body

    def finished(self, end: End) -> bytes:
        """The frame that says: this call ended so."""
        body = _encode(end)
        return _HEAD.pack(b"\xc1TGF", len(body), zlib.crc32(body, self._finished)) + body

    def proven(self, mark: Mark) -> bytes:
        """The frame that says: before this position everything is proven."""
        body, head = _encode(mark), _MARKER + PROVEN
        return _HEAD.pack(head, len(body), zlib.crc32(body, self._seeds[head])) + body

    def frames(self, data: bytes) -> Iterator[Frame]:
        """Every whole frame in these bytes, and between them the stretches that are damaged."""
        at, damaged_from = 0, -1
        while (at := data.find(_MARKER, at)) >= 0 if damaged_from >= 0 else at < len(data):
            end = self._frame_end(data, at)
            if end and damaged_from >= 0:
                yield Frame(DAMAGED, damaged_from, at, b"")
                damaged_from = -1
            if end:
                yield Frame(data[at + 3 : at + 4], at, end, data[at + _HEAD.size : end])
                at = end
            else:
                damaged_from = at if damaged_from < 0 else damaged_from
                at += 1
        if damaged_from >= 0:
            yield Frame(DAMAGED, damaged_from, len(data), b"")

    def _frame_end(self, data: bytes, at: int) -> int:
        """Where the frame that starts here ends; 0 if none does."""
        if at + _HEAD.size > len(data):
            return 0
        head, length, checksum = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if head not in self._seeds or length > BODY_BYTES_MAX or end > len(data):
            return 0
        body = data[at + _HEAD.size : end]
        return end if zlib.crc32(body, self._seeds[head]) == checksum else 0


def read_dispatched(body: bytes) -> OpenCall:
    """The call of a `DISPATCHED` body; `msgspec.DecodeError` or `ValidationError` if it is none."""
    read = _decode_dispatched(body)
    caps = tuple(Cap(cap.id, cap.limit, cap.starts_ms) for cap in read.caps)
    return OpenCall(read.call_id, read.partition, read.wallet, read.held, caps, read.ticket)


def read_finished(body: bytes) -> End:
    """The end of a `FINISHED` body; `msgspec.DecodeError` or `ValidationError` if it is none."""
    read = _decode_finished(body)
    return End(
        call_id=read.call_id,
        partition=read.partition,
        wallet=read.wallet,
        kind=read.kind,
        charge=read.charge,
        record=read.record,
        caps=tuple(Cap(cap.id, cap.limit, cap.starts_ms) for cap in read.caps),
        tokens=read.tokens,
    )


def read_proven(body: bytes) -> Mark:
    """The position of a `PROVEN` body; `msgspec.DecodeError` or `ValidationError` if it is none."""
    read = _decode_proven(body)
    return Mark(read.segment, read.offset)


# The same fields in the same order as Cap, OpenCall, End and Mark, which are encoded as they are.
# Structs, because a named tuple refuses an array that a newer release made longer.


class _Cap(msgspec.Struct, array_like=True, gc=False):
    id: str
    limit: Nanos
    starts_ms: tuple[int, ...]


class _Dispatched(msgspec.Struct, array_like=True, gc=False):
    call_id: bytes
    partition: int
    wallet: str
    held: int
    caps: tuple[_Cap, ...]
    ticket: bytes


class _Finished(msgspec.Struct, array_like=True, gc=False):
    call_id: bytes
    partition: int
    wallet: str
    kind: EndKind
    charge: Nanos
    record: bytes
    caps: tuple[_Cap, ...] = ()
    tokens: int = 0


class _Proven(msgspec.Struct, array_like=True, gc=False):
    segment: int
    offset: int


_encode = msgspec.msgpack.Encoder().encode
_decode_dispatched = msgspec.msgpack.Decoder(_Dispatched).decode
_decode_finished = msgspec.msgpack.Decoder(_Finished).decode
_decode_proven = msgspec.msgpack.Decoder(_Proven).decode

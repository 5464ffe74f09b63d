"""Read one entry of a partition's stream: bytes from Redis become a typed value, once, here.

No entry makes this raise. What cannot be read whole is passed on with what can: a broken record
still has its call id, wallet and charge, which are fields of their own, so its money is posted.
"""

import uuid
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec

from ledger.money import NANOS_MAX
from ledger.record import EndKind, Record, decode

WINDOW_MS_MAX = 40 * 86_400_000  # no cap has windows longer than a month

_INT64_MAX = 2**63 - 1
_TIME_US_MAX = 2**32 * 1_000_000  # the year 2106: until then a double tells microseconds apart
_CALL_ID_BYTES = 16
_MS_OF_ID = 1 << 80  # a UUIDv7 is 48 bits of unix milliseconds above 80 others

_KINDS = {kind.value.encode(): kind.value for kind in EndKind}
_windows = msgspec.msgpack.Decoder(list[tuple[str, int, int]]).decode


class Window(NamedTuple):
    """One cap window that an end was charged to."""

    cap_id: str
    starts_ms: int
    limit: int

    @property
    def id(self) -> str:
        """Its name as a wallet, in Redis and in Postgres."""
        return f"{self.cap_id}@{self.starts_ms}"


def is_window(wallet: str) -> bool:
    """Whether a wallet of Redis is a cap's window, not an organization's."""
    return "@" in wallet


class Ended(NamedTuple):
    """A call ended. `error` says what of the entry was unreadable and replaced; "" if nothing."""

    stream_id: str
    call_id: bytes
    kind: str
    moved: bool  # Redis took the charge in the same step; else Postgres decides
    wallet: str
    charge: int
    windows: tuple[Window, ...]
    record: Record
    packed: bytes
    error: str = ""


class Based(NamedTuple):
    """A base that Postgres had decided was taken in by Redis."""

    stream_id: str
    wallet: str
    base: int
    version: int
    cause: str


class Poison(NamedTuple):
    """An entry that is no end of a known call. `spent` is what Redis moved, if that can be told."""

    stream_id: str
    fields: Mapping[bytes, bytes]
    error: str
    wallet: str | None = None  # None: no money of it is known
    spent: int = 0
    windows: tuple[Window, ...] = ()


Parsed = Ended | Based | Poison
UNKNOWN_KIND = "unknown kind"  # of an entry: a newer release's, or nobody's


def parse(stream_id: str, fields: Mapping[bytes, bytes]) -> Parsed:
    """The entry as a value."""
    try:
        kind = _KINDS.get(fields[b"k"])
        if kind is None:
            return _based(stream_id, fields)
        wallet = canonical_uuid(fields[b"w"].decode())
        charge = int(fields[b"c"])
        moved = fields[b"m"] != b"0"
    except (KeyError, ValueError) as error:
        return Poison(stream_id, fields, f"unreadable: {error!r}")
    if not 0 <= charge <= NANOS_MAX:
        return Poison(stream_id, fields, "the charge is no amount")
    windows, wrong = _read_windows(fields.get(b"x", b""))
    call_id = fields.get(b"i", b"")
    if len(call_id) != _CALL_ID_BYTES:
        return Poison(stream_id, fields, "no call id", wallet, charge if moved else 0, windows)
    packed = fields.get(b"r", b"")
    try:
        record = decode(packed)
        _check(record, call_id)
    except (msgspec.MsgspecError, ValueError) as error:
        record, wrong = unknown_record(call_id, wallet), f"record: {error}"
    return Ended(stream_id, call_id, kind, moved, wallet, charge, windows, record, packed, wrong)


def distrusted(entry: Parsed, fields: Mapping[bytes, bytes], error: str) -> Poison | Ended:
    """The entry with less taken from it, after Postgres refused it as it was.

    First the record is replaced, then only the money is kept, then nothing.
    """
    match entry:
        case Ended(error=""):
            record = unknown_record(entry.call_id, entry.wallet)
            return entry._replace(record=record, error=error)
        case Ended():
            spent = entry.charge if entry.moved else 0
            return Poison(entry.stream_id, fields, error, entry.wallet, spent, entry.windows)
        case _:
            return Poison(entry.stream_id, fields, error)


def admitted_ms(call_id: bytes) -> int:
    """The unix milliseconds in a UUIDv7."""
    return int.from_bytes(call_id, "big") // _MS_OF_ID


@lru_cache(maxsize=65_536)
def place_of(stream_id: str) -> tuple[int, int]:
    """A stream id, `milliseconds-sequence`, as what sorts in its order."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def canonical_uuid(text: str) -> str:
    """The uuid in its one spelling, "" being the nil uuid, nobody's; else `ValueError`."""
    return str(uuid.UUID(text)) if text else str(uuid.UUID(int=0))


def unknown_record(call_id: bytes, wallet: str) -> Record:
    """What stands in for a record that cannot be read: the call, its payer, and nothing else."""
    return Record(
        call_id=call_id,
        organization_id=wallet,
        project_id="",
        key_id="",
        member_id="",
        admitted_us=admitted_ms(call_id) * 1000,
        operation="",
        provider="",
        model_requested="",
        model_target="",
        price_version="",
        held=0,
        flags=["unreadable"],
    )


def _check(record: Record, call_id: bytes) -> None:
    """Raise `ValueError` for what no column can hold, or for a record of another call."""
    if record.call_id != call_id:
        raise ValueError("the record is another call's")
    for identity in (
        record.organization_id,
        record.project_id,
        record.key_id,
        record.member_id,
    ):
        canonical_uuid(identity)
    if not 0 < record.admitted_us < _TIME_US_MAX or not 0 <= record.finished_us < _TIME_US_MAX:
        raise ValueError("a time is none")
    if record.usage and max(record.usage.values()) > _INT64_MAX // 1000:
        raise ValueError("a count is beyond measure")
    # The vendor's or the client's own words; Postgres holds no NUL in a text.
    if "\0" in record.model_served or "\0" in record.tier or "\0" in record.model_requested:
        record.model_served = record.model_served.replace("\0", "\ufffd")
        record.model_requested = record.model_requested.replace("\0", "\ufffd")
        record.tier = record.tier.replace("\0", "\ufffd")


def _based(stream_id: str, fields: Mapping[bytes, bytes]) -> Based | Poison:
    if fields[b"k"] != b"base":
        return Poison(stream_id, fields, UNKNOWN_KIND)
    return Based(
        stream_id,
        wallet=fields[b"w"].decode(),
        base=int(fields[b"b"]),
        version=int(fields[b"v"]),
        cause=fields.get(b"a", b"").decode(),
    )


def _read_windows(packed: bytes) -> tuple[tuple[Window, ...], str]:
    if len(packed) <= 1:  # absent, or an empty array
        return (), ""
    try:
        return tuple(Window(*window) for window in _windows(packed)), ""
    except msgspec.MsgspecError as error:
        return (), f"windows: {error}"

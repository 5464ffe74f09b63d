"""The usage record: what is kept of one call, as it travels from journal to stream to Postgres.

It holds no prompt, no completion and no secret. Encoded as a msgpack array, so fields may only be
added at the end, each with a default: a newer gateway and an older flusher must understand each
other.
"""

from enum import StrEnum

import msgspec


class EndKind(StrEnum):
    """How a hold ended. Every admitted call ends in exactly one of these."""

    SETTLED = "settled"  # the call was answered, in full or in part, and is charged
    RELEASED = "released"  # nothing was consumed; nothing is charged
    EXPIRED = "expired"  # nobody ended it in time and no progress is known; charge 0
    LOST = "lost"  # the gateway died with it; charged by its last known progress, estimated


class Outcome(StrEnum):
    """How the call went, as its client and operator would say it."""

    SUCCESS = "success"
    TRUNCATED = "truncated"  # the vendor's stream ended without its terminal event
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"
    LIMITED = "limited"  # a stream we ended early, for no more money could be held for it
    CLIENT_DISCONNECT = "client_disconnect"
    FAILED = "failed"  # ours
    UNKNOWN = "unknown"  # expired or lost


class Record(msgspec.Struct, array_like=True, forbid_unknown_fields=False, gc=False):
    """One call. Times are unix microseconds; durations microseconds; money nano-USD."""

    call_id: bytes  # UUIDv7, 16 bytes
    organization_id: str
    project_id: str
    key_id: str
    member_id: str  # "" when the key is nobody's own
    admitted_us: int
    operation: str
    provider: str
    model_requested: str
    model_target: str  # the model asked of the vendor
    price_version: str
    held: int
    kind: str = EndKind.LOST
    outcome: str = Outcome.UNKNOWN
    finished_us: int = 0
    charge: int = 0
    list_price: int = 0  # what the usage costs by the price sheet, whatever is charged
    reported_cost: int | None = None  # the vendor's own figure
    usage: dict[str, int] = {}
    usage_source: str = "none"
    reasoning: int = 0
    model_served: str = ""  # the model the vendor says it served
    tier: str = ""
    attempts: int = 0
    status: int = 0  # the HTTP status the client got
    stream: bool = False
    first_byte_us: int = 0  # after admission; 0: none came
    client: str = ""  # HMAC of the unique client, hex
    flags: list[str] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def encode(record: Record) -> bytes:
    """The record's bytes, as journal and stream carry them."""
    return _encode(record)


def decode(packed: bytes) -> Record:
    """The record of these bytes; `msgspec.DecodeError` or `ValidationError` if they are not one."""
    return _decode(packed)

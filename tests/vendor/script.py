"""What the scripted vendor is told to do, and what it says it did."""

from typing import Any, Literal

import msgspec

Encoding = Literal["", "gzip", "deflate", "br", "zstd", "corrupt"]
Framing = Literal["chunked", "length", "close"]


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to answer. Chosen by the model `script-<id>`, or given in the call itself as the
    top-level field `vendor_script`, whose fields then go above those of the model's script.

    Positions count *deltas*: pieces of generated text that a stream has sent. `x_after=0` is after
    the head and the opening events, before the first delta; -1 is right after the head. A body that
    is no stream has one delta, or is cut in two when trouble is asked for: 0 is before its first
    half, 1 between them.
    """

    id: str = ""

    # What is generated. A request's own limit on its output is obeyed, as vendors do.
    input_tokens: int = 10
    output_tokens: int = 5  # per choice, reasoning included
    cached_tokens: int = 0  # of the input
    reasoning_tokens: int = 0  # of the output; not visible
    deltas: int | None = None  # pieces of a stream; one for each visible token if None
    text: str = " token"  # of one piece
    tool_calls: int = 0  # how many instead of text
    model: str | None = None  # the model served; the one asked for if None
    service_tier: str | None = "default"
    dimensions: int = 8  # of an embedding

    # What it says of usage: when the client asks | in every case | never | beside the finish_reason
    # | in every chunk, growing.
    usage: Literal["asked", "always", "never", "last", "every"] = "asked"
    usage_fields: dict[str, Any] | None = None  # put into the usage object, above our own
    terminal: Literal["completed", "incomplete", "failed", "none"] = "completed"  # of responses
    done: bool = True  # [DONE] at the end of a stream

    # HTTP.
    status: int = 200
    error: dict[str, Any] | None = None  # the error object, where there is one
    body: str | None = None  # instead of what would be generated, whatever it is
    headers: dict[str, str] = {}
    encoding: Encoding = ""
    framing: Framing | None = None  # a stream is chunked, another answer has a length
    raw: bytes | None = None  # base64 in JSON: the answer's body, replayed
    raw_wire: bytes | None = None  # base64 in JSON: the whole answer, head included
    content_type: str | None = None
    cuts: list[int] | None = None  # where the body is cut into pieces
    cut_seed: int | None = None  # or: cut at up to 16 random places

    # Time, in seconds.
    head_s: float = 0.0  # before the head
    first_s: float = 0.0  # between the head and the body
    interval_s: float = 0.0  # between the pieces of a stream
    trickle_bytes: int = 0  # pieces are sent in crumbs of this size
    trickle_s: float = 0.0  # between crumbs

    # Trouble.
    error_after: int | None = None  # an error event in a stream that began as 200; then the end
    reset_after: int | None = None  # a TCP reset
    reset_after_bytes: int | None = None  # of the body
    cut_after: int | None = None  # the connection ends, the answer does not
    eof_after: int | None = None  # the answer ends in good order, but for the rest of its events
    stall_after: int | None = None
    stall_s: float = 3600.0
    close_before_head: bool = False
    reset_before_head: bool = False
    garbage: bool = False  # bytes that are no HTTP
    hold_at: int | None = None  # wait there for a release; -1 is before the head


class Entry(msgspec.Struct, kw_only=True):
    """One request, as the vendor saw it. Times are of the machine's monotonic clock, in seconds."""

    number: int  # the answer's x-request-id is req_<number>
    connection: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: str  # its first 4,096 bytes
    body_bytes: int
    body_sha256: str
    script: str
    model: str
    stream: bool
    started_s: float
    first_s: float | None = None  # when the first byte of the answer was written
    ended_s: float | None = None  # when the last was, or the trouble happened, or the peer left
    status: int = 0
    sent_bytes: int = 0
    deltas: int = 0  # sent
    completed: bool = False  # the whole answer was written: nothing broke it, nobody left
    left_s: float | None = None  # when the peer closed, if it did before that
    # By the vendor's own count, for what it has generated up to its end: what it would charge.
    billed_input: int = 0
    billed_cached: int = 0
    billed_output: int = 0
    billed_reasoning: int = 0

    def header(self, name: str) -> str | None:
        """The first header of this name, whatever its case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class State(msgspec.Struct, kw_only=True):
    """What is going on at the vendor."""

    requests: int  # ever
    open: int  # without an end
    held: int  # waiting for a release
    connections: int
    billed_input: int
    billed_output: int

"""The contract between the gateway and a vendor: behind it is no I/O, no clock and no state.

The gateway reads a `Call` from the client's bytes, asks an `Adapter` for the `UpstreamRequest` to a
`Target`, and feeds a `Meter` with the vendor's bytes as they come.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec

from ledger.usage import Usage


class Operation(StrEnum):
    """What a client may ask for; the value is the path below /v1."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MODERATIONS = "moderations"


OUTPUTLESS = frozenset({Operation.EMBEDDINGS, Operation.MODERATIONS})
"""What generates no tokens."""


class Secret:
    """A text that cannot be printed, formatted, compared or pickled by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text. The one way to it, so that every use can be found."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")

    __getstate__ = __reduce__

    def __bool__(self) -> bool:
        return bool(self._text)


class BadCall(Exception):
    """The client's body is no call. `param` names the field, `code` is for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class Call(msgspec.Struct, frozen=True, gc=False):
    """What the gateway must know of a client's request; the body itself stays bytes.

    To put a limit on a call that has none, the gateway passes on `structs.replace(call,
    output_limit=n)`: the adapter writes it into the vendor's request.
    """

    operation: Operation
    body: bytes
    model: str
    stream: bool
    usage_wanted: bool  # the client asked for the usage chunk of a stream
    input_bound: int  # tokens the input cannot exceed, without the provider's overhead
    output_limit: int | None  # tokens per choice the client allows; None if it set no limit
    choices: int  # n, best_of, or prompts in a list: what multiplies the output
    service_tier: str | None
    user: str | None  # the client's own name for its user, cut to 128 characters
    vendor_ids: tuple[
        str, ...
    ]  # fields that name things kept at the vendor, e.g. previous_response_id
    tools: bool  # the vendor may run tools of its own, which cost beyond the bound
    fields: Mapping[str, msgspec.Raw] = MappingProxyType({})  # the body's own, for the adapter


class Head(NamedTuple):
    """What all requests of a kind to one target have in common."""

    path: str
    headers: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"Head({self.path!r}, {len(self.headers)} headers)"  # one of them is a key


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a call may go: one model of one configured provider."""

    provider: str  # its name in config.yaml
    model: str  # the vendor's name of the model
    scheme: str  # "http" | "https"
    host: str
    port: int
    path: str  # what stands before the operation, e.g. "/v1"
    api_key: Secret
    quirks: str = "openai"  # a name in providers.custom.QUIRKS
    headers: Mapping[str, Secret] = field(default_factory=dict)  # fixed, from the configuration
    # What its adapter works out once for all calls of a kind; of another target it is another.
    heads: dict[tuple[Operation, bool], "Head"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )


class UpstreamRequest(NamedTuple):
    """A request to send, whole but for Host, Content-Length and the connection's own headers."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]  # of one target and kind of call always the same object
    body: bytes

    def __repr__(self) -> str:
        # A key is among the headers, and the body is somebody's prompt.
        return f"UpstreamRequest({self.method} {self.path!r}, {len(self.body)} bytes)"


class Failure(NamedTuple):
    """An error as the vendor told it, fit to be shown to a client: no key, no id of ours in it."""

    message: str
    type: str
    code: str | None
    param: str | None
    status: int  # the HTTP status that says the same; for errors inside a stream, by its type


class Meter(Protocol):
    """Reads one answer as it passes. Chunk borders do not matter, and no input makes it raise."""

    started: bool  # the first event that carries anything has been seen
    finished: bool  # the vendor's terminal event has been seen

    @property
    def failure(self) -> Failure | None:
        """The error told inside a 200 answer."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes of `chunk`, and what was withheld before it, that the client shall see now."""

    def end(self) -> bytes:
        """The vendor's answer is over: the bytes still withheld."""

    def ending(self, failure: Failure | None) -> bytes:
        """What ends the client's answer in the vendor's stead, the vendor having died or been cut.

        An error; or, with None, the well-formed end of an answer whose limit is reached. Empty if
        the answer's form allows neither.
        """

    def generated(self) -> int:
        """Output tokens so far, as `usage` would estimate them; cheap enough for every event."""

    def usage(self) -> Usage:
        """What was consumed so far; `ESTIMATED` while the vendor has not said."""


class Adapter(Protocol):
    """One vendor's dialect."""

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        """The vendor's request for this call: its key, its model's name, all other bytes kept."""

    def meter(self, call: Call, target: Target, *, streamed: bool, bound: int) -> Meter:
        """A meter for the answer. `streamed` is what the answer's content-type says.

        `bound`: the input tokens the hold was made for, which an estimate never exceeds.
        """

    def failure(self, status: int, body: bytes) -> Failure:
        """The error of an answer that is not 2xx."""

"""What a route is: where it is asked, by whom, with what, and what it answers."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from gateway.errors import NotFound
from gateway.rest.caller import Access, Caller

Query = TypeVar("Query")
Body = TypeVar("Body")

PREFIX = "/api/v1"


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query string or a body without any fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Generic[Query, Body]):
    """One request, decoded and allowed."""

    caller: Caller
    path: Mapping[str, str]
    query: Query
    body: Body
    if_match: int | None  # the version that is to be changed; None: whichever it has
    key: str | None  # Idempotency-Key
    cookies: Mapping[str, str]
    agent: str

    def id(self, name: str) -> UUID:
        """The id in the path under this name; `NotFound` if it cannot be one."""
        try:
            return UUID(self.path[name])
        except ValueError as error:
            # What stands there may be a secret in the wrong place, so it is not repeated.
            raise NotFound(f"There is none: {name} is not an id.", code="not_found") from error


class Download(NamedTuple):
    """A file that is made while it is sent."""

    media: str  # one of the route's
    name: str
    chunks: AsyncIterator[bytes]


class Answer(NamedTuple):
    """What is answered with the status of its route."""

    body: msgspec.Struct | None = None
    version: int | None = None  # its ETag
    cookies: Mapping[str, str | None] = {}  # to be set; None: to be forgotten
    download: Download | None = None  # of a route with `media`: instead of a body


# The parts that handlers work on are management's to define.
Handle = Callable[[Any, Asked[Any, Any]], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path."""

    method: str
    path: str  # below PREFIX; {name} is a parameter
    name: str  # "projects.create": unique, the operation's id in the document
    says: str  # what it does, in a sentence
    access: Access
    handle: Handle
    query: type[msgspec.Struct] = Nothing
    body: type[msgspec.Struct] | None = None
    answers: type[msgspec.Struct] | None = None  # None: nothing
    media: tuple[str, ...] = ()  # what its file may be; then it answers nothing else
    status: int = 200
    is_once: bool = False  # money moves or a mail is sent: Idempotency-Key is obeyed
    needs_key: bool = False  # ... and must be sent
    is_guessed: bool = False  # somebody may try passwords or codes: few tries are let through
    raises: tuple[int, ...] = field(default=())  # statuses of its own errors

    @property
    def group(self) -> str:
        """What it is listed under."""
        return self.name.partition(".")[0]

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.method != "GET"

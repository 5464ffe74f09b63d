"""The log: one JSON line per outcome, on the way out of which secrets are masked.

Events go through `logging`, their name as the message and their fields in `extra`; calls, of which
there are thousands a second, take `Lines.outcome`, which makes the same line without a `LogRecord`.
Values are numbers, short texts and lists or tables of them: anything else shows its type and not
what it holds. Nobody waits for whoever reads the log.

What an outage makes many places say has one cause (`cause` in `extra`, `Lines.outage`): a process
says one line a second of each, with how many it left out.
"""

import logging
import os
import re
import threading
import traceback
from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import orjson

_TEXT_MAX = 500  # characters of one value
_LINE_MAX = 16 * 1024  # bytes; above it every value is cut to _TEXT_MAX
_TRACEBACK_MAX = 6_000  # characters, from the end, where the cause is
_SECRET_MIN = 8  # characters; shorter ones are found in innocent words
_EVENTS_MAX = 1_000  # events whose repetitions are counted
_TOLD_MAX = 1_000  # of what clients chose, as it was masked: about 1 MB at most
_BURST = 5  # lines of one warning or error that may come at once; after them one a second

CALL_ENDED = "call ended"

_MASK = b"[secret]"
_PATTERN = re.compile(
    rb"""
      (?: (?<![A-Za-z0-9]) | (?<=\\[nrtbf]) )       # what was a line break is an n by now
      (?: tg_(?:live|test)_ [A-Za-z0-9_]+           # our own API keys
        | (?:sk|pk|rk|xai)- [A-Za-z0-9_-]{8,}       # OpenAI, Anthropic, OpenRouter, xAI
        | (?:sk|pk|rk|gsk|hf)_ [A-Za-z0-9_-]{8,}    # Stripe, Groq, Hugging Face
        | AIza [A-Za-z0-9_-]{20,}                   # Google
        | (?:AKIA|ASIA) [A-Z0-9]{12,}               # AWS
        | eyJ [A-Za-z0-9_-]{10,} \. [A-Za-z0-9_.-]+ # JSON web tokens
      )
    | (?i:bearer) (?:\s|%20)+ [^\s"\\]+
    | (?<=://) [^\s/@"\\]+ (?=@)                   # user and password of a URL
    """,
    re.VERBOSE,
)
# In every text that the pattern matches, and found in a quarter of the time.
_HINT = re.compile(rb"[gki][-_]|hf_|AIza|A[KS]IA|eyJ|://|[eE][aA][rR][eE][rR]")

_STANDARD = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


class Write(Protocol):
    """Where lines go, a line break at the end of each."""

    def __call__(self, line: bytes, /) -> None: ...


class Lines:
    """Makes lines, masks what must not be in them, and passes them on."""

    def __init__(self, write: Write, *, process: str, wall_s: Callable[[], float]) -> None:
        self._write, self._wall_s = write, wall_s
        self._process = process
        self._secrets: tuple[bytes, ...] = ()
        self._second, self._second_text = -1, ""
        # Between the time and the rest of a line, as it is in every line of level info.
        self._info = f'Z","level":"info","process":{orjson.dumps(process).decode()},'
        self._told: dict[tuple[str, str], str] = {}  # the end of the line of a call, masked
        self._thinned = Thinned(burst=1)

    def know_secrets(self, secrets: Collection[str]) -> None:
        """Takes the texts that no line may ever hold, whatever they look like."""
        # Longest first: one secret may begin with another.
        known = sorted({text for text in secrets if len(text) >= _SECRET_MIN}, key=len)
        self._secrets = tuple(orjson.dumps(text)[1:-1] for text in reversed(known))
        self._told.clear()

    def event(
        self, event: str, fields: Mapping[str, Any], *, level: str = "info", at_s: float = 0.0
    ) -> None:
        """Write one line. Never raises, whatever the values are."""
        head = self._head(level=level, at_s=at_s or self._wall_s())
        self._write(self._masked(_packed({**head, "event": event, **fields})) + b"\n")

    def outcome(self, event: str, ours: Mapping[str, Any], told: Mapping[str, str]) -> None:
        """Write the line of a call, quickly.

        `ours` are ids, numbers and names that we made, in which no secret is looked for; `told` is
        whatever a client or a vendor chose.
        """
        head = self._head(level="info", at_s=self._wall_s())
        searched = self._masked(_packed({"event": event, **told}))
        self._write(b"%b,%b\n" % (_packed({**head, **ours})[:-1], searched[1:]))

    def outage(
        self, event: str, ours: Mapping[str, Any], told: Mapping[str, str], *, cause: str
    ) -> None:
        """As `outcome`, for one that many others are like while something is away."""
        left_out = self.left_out(cause, self._wall_s())
        if left_out is not None:
            self.outcome(event, {**ours, "cause": cause, "left_out": left_out}, told)

    def left_out(self, cause: str, now_s: float) -> int | None:
        """How many lines of this cause were not said since the last; None: this one is not."""
        return self._thinned.passed(cause, now_s)

    def ended(self, ours: str, model: str, code: str) -> None:
        """Write the line of a call that ended, quicker still, as most calls end like many others.

        `ours` are as in `outcome`, in JSON already and without braces; `model` and `code` are told.
        """
        at_s = self._wall_s()
        if int(at_s) != self._second:
            self._begin_second(int(at_s))
        told = self._told.get((model, code)) or self._end_told(model, code)
        milliseconds = int(at_s * 1000) % 1000
        self._write(
            f'{{"time":"{self._second_text}{milliseconds:03d}{self._info}{ours},{told}'.encode()
        )

    def _end_told(self, model: str, code: str) -> str:
        """What follows our own fields. Looking for secrets takes 2 us, so it is remembered."""
        fields = {"event": CALL_ENDED, **told_of(model, code)}
        told = self._masked(_packed(fields))[1:].decode() + "\n"
        if len(self._told) >= _TOLD_MAX:
            self._told.clear()
        self._told[model, code] = told
        return told

    def _head(self, *, level: str, at_s: float) -> dict[str, Any]:
        return {"time": self._time(at_s), "level": level, "process": self._process}

    def _time(self, at_s: float) -> str:
        if int(at_s) != self._second:
            self._begin_second(int(at_s))
        return f"{self._second_text}{int(at_s * 1000) % 1000:03d}Z"

    def _begin_second(self, second: int) -> None:
        self._second = second
        self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")

    def _masked(self, packed: bytes) -> bytes:
        for secret in self._secrets:
            if secret in packed:
                packed = packed.replace(secret, _MASK)
        return _PATTERN.sub(_MASK, packed) if _HINT.search(packed) else packed


def told_of(model: str, code: str) -> dict[str, str]:
    """What a client or vendor chose of a call; `code` "": it was answered with no error."""
    return {"model": model, "code": code} if code else {"model": model}


def json_of(value: Any) -> str:
    """Names that we made, as they stand in a line."""
    return _packed(value).decode()


_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_NON_STR_KEYS


def _packed(line: Any) -> bytes:
    try:
        packed = orjson.dumps(line, _shown, _OPTIONS)
    except TypeError:
        packed = b""
    return packed if 0 < len(packed) <= _LINE_MAX else orjson.dumps(_cut(line))


def _shown(value: object) -> str:
    """What a value of no plain type shows of itself: nothing but that it is there."""
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"[:_TEXT_MAX]
    return f"<{type(value).__name__}>"


def _cut(value: Any) -> Any:
    """The value in a form that certainly fits, and that certainly can be written."""
    if isinstance(value, str):
        # A lone surrogate, which no UTF-8 can hold, comes in with file names and odd JSON.
        return value[:_TEXT_MAX].encode(errors="backslashreplace").decode()
    if isinstance(value, bool | float | None):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)[:_TEXT_MAX]
    if isinstance(value, Mapping):
        return {_cut(str(key)): _cut(inner) for key, inner in list(value.items())[:100]}
    if isinstance(value, list | tuple):
        return [_cut(inner) for inner in value[:20]]
    return _cut(_shown(value))


class _Repeated(NamedTuple):
    """How much of its allowance something has left, as of when, and how often it was kept quiet."""

    allowance: float
    at_s: float
    silenced: int


class Thinned:
    """Lets `burst` lines of a kind pass at once and then one a second, and counts the others."""

    def __init__(self, *, burst: int) -> None:
        self._burst = burst
        self._repeated: dict[Hashable, _Repeated] = {}

    def passed(self, kind: Hashable, now_s: float) -> int | None:
        """How many were kept quiet before this one; None: this one is, too."""
        burst = self._burst
        before = self._repeated.get(kind) or _Repeated(burst, now_s, 0)
        allowance = min(burst, before.allowance + max(0.0, now_s - before.at_s))
        if kind not in self._repeated and len(self._repeated) >= _EVENTS_MAX:
            self._repeated.clear()
        if allowance < 1:
            self._repeated[kind] = _Repeated(allowance, now_s, before.silenced + 1)
            return None
        self._repeated[kind] = _Repeated(allowance - 1, now_s, 0)
        return before.silenced


class LinesHandler(logging.Handler):
    """Makes a line of every `LogRecord`. A warning or error that repeats is thinned out.

    The next line that passes says in `repeated` how many of its kind did not; where a `cause` is
    given, in `left_out` how many of that cause, whichever events they were.
    """

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines, self._thinned = lines, Thinned(burst=_BURST)

    def emit(self, record: logging.LogRecord) -> None:
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        silenced = self._silenced(record, fields.get("cause"))
        if silenced is None:
            return
        fields["logger"] = record.name
        if silenced:
            fields["left_out" if "cause" in fields else "repeated"] = silenced
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = record.exc_info[1]
            fields["traceback"] = _traceback(record.exc_info[1])
        try:
            event = record.getMessage()
        except (TypeError, ValueError):
            event = record.msg
        self._lines.event(event, fields, level=record.levelname.lower(), at_s=record.created)

    def _silenced(self, record: logging.LogRecord, cause: object) -> int | None:
        """How many were kept quiet before this one; None: this one is, too."""
        if isinstance(cause, str):
            return self._lines.left_out(cause, record.created)
        if record.levelno < logging.WARNING:
            return 0
        return self._thinned.passed((record.name, str(record.msg)), record.created)


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-_TRACEBACK_MAX:]


def install(lines: Lines, *, level: str) -> None:
    """Makes `lines` the one place where this process's `logging` goes."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(LinesHandler(lines))
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """Applies a level of the configuration to our own loggers; libraries speak from warnings on."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for package in ("gateway", "ledger", "providers"):
        logging.getLogger(package).setLevel(level.upper())


class LineWriter:
    """Writes lines to a file descriptor from a thread of its own: a full pipe stops nobody else.

    What a crash loses is the last 50 ms. Lines that nobody takes are dropped, and counted.
    """

    waiting_max = 20_000  # lines: about 10 MB
    every_s = 0.05

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self.dropped = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        # A reader that has stalled for good must not keep the process from ending.
        self._thread.join(timeout=2)

    def write(self, line: bytes) -> None:
        if len(self._waiting) >= self.waiting_max:
            self.dropped += 1
        else:
            self._waiting.append(line)

    def _run(self) -> None:
        while not self._closing.wait(self.every_s):
            self._drain()
        self._drain()

    def _drain(self) -> None:
        count = len(self._waiting)
        if not count:
            return
        left = memoryview(b"".join(self._waiting.popleft() for _ in range(count)))
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            # The reader is gone. A gateway without a log still serves; the count shows it.
            self.dropped += count

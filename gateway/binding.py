"""Reads a document into frozen dataclasses by their annotations, and lists every mistake it meets.

A value that cannot be read is left at its default, so that one mistake does not hide the next. No
message repeats what a secret or a URL says.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from gateway.bounds import GIB, KIB, MIB, Between, Endpoint, Format
from gateway.document import Listing, Mistake, Node, Scalar, Table, parse
from ledger.money import nanos
from providers.adapter import Secret

Steps: TypeAlias = tuple[str | int, ...]

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_INTEGER = re.compile(r"[+-]?[0-9][0-9_]*\Z")
_NUMBER = re.compile(r"[+-]?[0-9][0-9_]*(\.[0-9]+)?\Z")
_SIZE = re.compile(r"([0-9][0-9_]*)\s*(B|KiB|MiB|GiB)?\Z")
_SIZES = {None: 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_URL_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*\Z")
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?\Z|[0-9a-f:.]+\Z")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DEFAULT_PORTS = {"http": 80, "https": 443}

_NOTHING: Any = object()  # what a value that cannot be read is, until its default takes the place


class _Unreadable(ValueError):
    """The text is not what its setting wants; the message says what it wants."""


def path_text(steps: Steps) -> str:
    """The path as one would say it: `models."gpt-4.1".targets[0]`."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _PLAIN_KEY.match(step) else f'"{step}"'
            text += f".{name}" if text else name
    return text


def _key_of(field: Field[Any]) -> str | None:
    """The key of config.yaml that the field is read from; None: it is not read."""
    return None if field.metadata.get("derived") else field.metadata.get("key", field.name)


def settings_of(kind: type[Any]) -> Mapping[str, tuple[Field[Any], Any]]:
    """The keys that config.yaml may have where `kind` is read, with their fields and types."""
    hints = get_type_hints(kind, include_extras=True)
    return {key: (field, hints[field.name]) for field in fields(kind) if (key := _key_of(field))}


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """The type itself, the rules annotated to it, and whether it may be None."""
    rules: tuple[Any, ...] = ()
    is_optional = False
    while get_origin(hint) in (Annotated, Union, UnionType):
        first, *rest = get_args(hint)
        if get_origin(hint) is Annotated:
            rules = (*rules, *rest)
        else:
            is_optional = True
        hint = first
    return hint, rules, is_optional


class Binder:
    """One reading. `mistakes` and what is known of each path grow with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.mistakes: list[Mistake] = []
        self.lines: dict[Steps, int] = {}  # every path that was set, with its line
        self.unset: dict[Steps, str] = {}  # references to variables that are not there
        self.plain: list[Steps] = []  # secrets that stand in the file itself

    def wrong(self, steps: Steps, message: str) -> None:
        """Notes a mistake at this path, on the line of the nearest path that stands in the file."""
        near = steps
        while near and not self.lines.get(near):
            near = near[:-1]
        self.mistakes.append(Mistake(self.lines.get(near, 0), path_text(steps), message))

    def record(self, kind: type[Any], node: Node, steps: Steps = ()) -> Any:
        """The dataclass `kind` as the table `node` describes it."""
        table = self._table(node, steps)
        if table is None:
            return _NOTHING
        known = settings_of(kind)
        for key in table.entries.keys() - known.keys():
            self.lines[*steps, key] = table.line_of(key)
            source = table.entries[key]
            said = f"{source.variable}: " if isinstance(source, Scalar) and source.variable else ""
            self.wrong((*steps, key), f"{said}unknown setting{meant(key, known)}")
        values: dict[str, Any] = {}
        for key, (field, hint) in known.items():
            if key not in table.entries:
                if field.default is MISSING and field.default_factory is MISSING:
                    self.wrong(steps, f"{key!r} is missing")
                    values[field.name] = _NOTHING
                continue
            self.lines[*steps, key] = table.line_of(key)
            value = self._value(hint, table.entries[key], (*steps, key))
            if value is not _NOTHING:
                values[field.name] = value
            elif field.default is MISSING and field.default_factory is MISSING:
                values[field.name] = _NOTHING
        return _NOTHING if _NOTHING in values.values() else kind(**values)

    def _value(self, hint: Any, node: Node, steps: Steps) -> Any:
        kind, rules, is_optional = _unwrapped(hint)
        if is_optional and isinstance(node, Scalar) and node.is_null:
            return None
        if get_origin(kind) is tuple:
            return self._tuple(get_args(kind)[0], node, steps)
        if get_origin(kind) is Mapping:
            return self._mapping(get_args(kind), node, steps)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            return self.record(kind, node, steps)
        return self._scalar(kind, node, steps, rules)

    def _table(self, node: Node, steps: Steps) -> Table | None:
        node = self._structure(node, steps)
        if isinstance(node, Scalar) and node.is_null:
            return Table({}, node.line)
        if not isinstance(node, Table):
            self.wrong(steps, "must be settings of its own, `key: value` each")
            return None
        return node

    def _structure(self, node: Node, steps: Steps) -> Node:
        """A list or table that was given as the text of a variable is YAML, too."""
        if not isinstance(node, Scalar) or not node.variable or node.is_null:
            return node
        inner, mistakes = parse(node.text, is_file=False)
        for mistake in mistakes:
            self.wrong(steps, f"{node.variable}: {mistake.message}")
        return inner

    def _tuple(self, item: Any, node: Node, steps: Steps) -> Any:
        node = self._structure(node, steps)
        if isinstance(node, Scalar) and node.is_null:
            return ()
        if not isinstance(node, Listing):
            self.wrong(steps, "must be a list")
            return _NOTHING
        values = []
        for place, inner in enumerate(node.items):
            self.lines[*steps, place] = inner.line
            values.append(self._value(item, inner, (*steps, place)))
        return tuple(value for value in values if value is not _NOTHING)

    def _mapping(self, hints: tuple[Any, ...], node: Node, steps: Steps) -> Any:
        table = self._table(node, steps)
        if table is None:
            return _NOTHING
        values: dict[Any, Any] = {}
        for name, inner in table.entries.items():
            inside = (*steps, name)
            self.lines[inside] = table.line_of(name)
            key = self._scalar(hints[0], Scalar(name), inside, ())
            value = self._value(hints[1], inner, inside)
            if key is not _NOTHING and value is not _NOTHING:
                values[key] = value
        return values

    def _scalar(self, kind: type[Any], node: Node, steps: Steps, rules: tuple[Any, ...]) -> Any:
        if not isinstance(node, Scalar):
            self.wrong(steps, "must be one value")
            return _NOTHING
        text = self._resolved(kind, node, steps)
        if text is None:
            return Secret("") if kind is Secret else _NOTHING
        if node.is_null or not text:
            self.wrong(steps, "has no value")
            return _NOTHING
        try:
            value = _read(kind, text, rules)
            _check_bounds(value, rules)
        except _Unreadable as error:
            said = f"{error}{meant(text, [*kind])}" if issubclass(kind, StrEnum) else str(error)
            self.wrong(steps, f"{node.variable}: {said}" if node.variable else said)
            return _NOTHING
        return value

    def _resolved(self, kind: type[Any], node: Scalar, steps: Steps) -> str | None:
        """The text with its `${VARIABLES}` in place; None if one of them is not set."""
        if node.variable or "${" not in node.text:
            if kind is Secret and node.text and node.line:
                self.plain.append(steps)
            return node.text
        if kind not in (Secret, Endpoint):
            self.wrong(steps, "${...} is read in secrets and URLs only")
            return node.text
        for variable in _REFERENCE.findall(node.text):
            if not self._environ.get(variable):
                self.unset[steps] = variable
                return None
        return _REFERENCE.sub(lambda found: self._environ[found[1]], node.text)


def meant(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """What was probably meant, as the end of a message; "" if nothing comes near."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {str(near[0])!r}?" if near else ""


def _read(kind: type[Any], text: str, rules: tuple[Any, ...]) -> Any:
    special = next((rule for rule in rules if isinstance(rule, Format)), None)
    if special is not None:
        return _FORMATS[special](text)
    if issubclass(kind, StrEnum):
        if text not in [*kind]:
            raise _Unreadable(f"must be one of {', '.join(kind)}")
        return kind(text)
    return _KINDS[kind](text)


def _check_bounds(value: Any, rules: tuple[Any, ...]) -> None:
    for rule in rules:
        if not isinstance(rule, Between):
            continue
        is_text = isinstance(value, str | Secret)
        length = len(value.reveal() if isinstance(value, Secret) else value) if is_text else value
        if not rule.low <= length <= rule.high:
            what = "must have between" if is_text else "must be between"
            unit = " characters" if is_text else ""
            raise _Unreadable(f"{what} {_shown(rule.low)} and {_shown(rule.high)}{unit}")


def _shown(number: float) -> str:
    return f"{number:,.3f}".rstrip("0").rstrip(".").replace(",", "_")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise _Unreadable("must be true or false")
    return text.lower() == "true"


def _integer(text: str) -> int:
    if not _INTEGER.match(text):
        raise _Unreadable("must be a whole number")
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.match(text):
        raise _Unreadable("must be a number")
    return float(text)


def _text(text: str) -> str:
    if _CONTROL.search(text):
        raise _Unreadable("contains a line break or another control character")
    return text


def _secret(text: str) -> Secret:
    # A line break in a secret would end the header it is sent in; most come from `echo` or a file.
    return Secret(_text(text))


def _endpoint(text: str) -> Endpoint:
    try:
        parts = urlsplit(_text(text))
        port = parts.port
    except ValueError as error:
        raise _Unreadable("is not a URL") from error
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise _Unreadable("must be a URL that begins with https:// (or http://) and a host")
    if parts.username is not None or parts.password is not None:
        raise _Unreadable("must not contain a user or password; use api_key")
    if parts.query or parts.fragment:
        raise _Unreadable("must not contain ? or #")
    if not _HOST.match(parts.hostname) or not _URL_PATH.match(parts.path):
        raise _Unreadable("contains a character that no URL may have")
    if port == 0:
        raise _Unreadable("must not have port 0")
    return Endpoint(
        parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], parts.path.rstrip("/")
    )


def _size(text: str) -> int:
    found = _SIZE.match(text)
    if not found:
        raise _Unreadable("must be a whole number of bytes, or one with KiB, MiB or GiB")
    return int(found[1]) * _SIZES[found[2]]


def _usd(text: str) -> int:
    try:
        amount = nanos(text)
    except ValueError as error:
        raise _Unreadable(str(error)) from error
    if amount < 0:
        raise _Unreadable("must not be negative")
    return amount


def _date(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _Unreadable("must be a date such as 2026-01-31, or 2026-01-31T12:00Z") from error
    # Without an offset a date is UTC: a machine's local time must not move a price.
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


_KINDS: Mapping[type[Any], Callable[[str], Any]] = {
    bool: _boolean,
    int: _integer,
    float: _number,
    str: _text,
    Path: lambda text: Path(_text(text)),
    Secret: _secret,
    Endpoint: _endpoint,
}
_FORMATS: Mapping[Format, Callable[[str], int]] = {
    Format.SIZE: _size,
    Format.USD: _usd,
    Format.DATE: _date,
}

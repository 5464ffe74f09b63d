"""What a request says, decoded into the types of its route, or what is wrong with it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from gateway.errors import BadRequest

Form = TypeVar("Form")

KEY_CHARACTERS_MAX = 200
KEY_PATTERN = rf"^[!-~]{{1,{KEY_CHARACTERS_MAX}}}$"  # of an Idempotency-Key
_DIGITS_MAX = 18  # of a version: what fits in 64 bits
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # valid JSON that no text column can keep
_AT = re.compile(r" - at `\$\.?(.*)`\Z")


def body_in(data: bytes, form: type[Form]) -> Form:
    """The body; `BadRequest` names the member that is wrong."""
    if _NUL.search(data):
        raise BadRequest("A text has no NUL characters.", code="invalid_body")
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), "invalid_body") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The body is no JSON: {error}.", code="invalid_json") from error


def query_in(pairs: Iterable[tuple[str, str]], form: type[Form]) -> Form:
    """The query string; `BadRequest` names the parameter that is wrong."""
    named: dict[str, Any] = {}
    for name, value in pairs:
        if name in named:
            raise BadRequest(f"{name} is given twice.", code="invalid_query", param=name)
        if "\0" in value:
            raise BadRequest("A text has no NUL characters.", code="invalid_query", param=name)
        named[name] = value
    try:
        return msgspec.convert(named, form, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), "invalid_query") from error


def version_in(headers: Mapping[str, str]) -> int | None:
    """What If-Match says; None: nothing, or any version."""
    said = headers.get("If-Match", "*").strip()
    if said == "*":
        return None
    number = said[1:-1]
    if (
        said != f'"{number}"'
        or not number.isascii()
        or not number.isdigit()
        or len(number) > _DIGITS_MAX
    ):
        raise BadRequest('If-Match takes the ETag of an answer, like "3".', code="invalid_if_match")
    return int(number)


def key_in(headers: Mapping[str, str]) -> str | None:
    """What Idempotency-Key says; None: nothing."""
    key = headers.get("Idempotency-Key")
    if key is not None and not re.match(KEY_PATTERN, key):
        raise BadRequest(
            f"Idempotency-Key has 1 to {KEY_CHARACTERS_MAX} visible ASCII characters.",
            code="invalid_idempotency_key",
        )
    return key


def _wrong(text: str, code: str) -> BadRequest:
    """msgspec's words as a sentence, with the member they are about."""
    at = _AT.search(text)
    param = None if at is None else at[1] or None
    said = text if at is None else text[: at.start()]
    where = f"{param}: " if param else ""
    return BadRequest(f"{where}{said}.", code=code, param=param)

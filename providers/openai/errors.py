"""Errors of OpenAI's dialect: what vendors say, made fit to be shown, and how we say our own.

Every shape seen is read: `{"error": {...}}`, `{"error": "text"}`, `{"message": ...}` of vLLM,
Mistral, DashScope and Bedrock, `{"detail": ...}` of FastAPI, a list of one of them, and no JSON.
"""

import re
from typing import Any

import msgspec

from providers.adapter import Failure, Operation

MESSAGE_CHARACTERS_MAX = 2_000
_WORD_CHARACTERS_MAX = 100
_TEXT_CHARACTERS_MAX = 300

_HTTP_ERRORS = range(400, 600)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
}

# Part of a type or code -> the status that says the same. The first that fits counts.
_STATUSES = (
    ("quota", 429),
    ("rate_limit", 429),
    ("ratelimit", 429),
    ("too_many_requests", 429),
    ("throttl", 429),
    ("resource_exhausted", 429),
    ("insufficient_balance", 402),
    ("api_key", 401),
    ("authentication", 401),
    ("unauthorized", 401),
    ("permission", 403),
    ("forbidden", 403),
    ("content_filter", 400),
    ("content_policy", 400),
    ("not_found", 404),
    ("context_length", 400),
    ("exceed_context", 400),
    ("tool_use_failed", 400),
    ("invalid", 400),
    ("bad_request", 400),
    ("overloaded", 503),
    ("unavailable", 503),
    ("timeout", 504),
)
_UNKNOWN_STATUS = 502
_SERVER_ERRORS = range(500, 1000)

# Keys, the vendors' and ours, whole or starred out by the vendor; and ids of the account. Names of
# fields and models look alike, so all but the commonest must have a digit or a star.
_SECRETS = re.compile(
    r"\b(?:sk|tg)[-_][\w*.-]{5,}[\w*]"
    r"|\b(?:pk|rk|gsk|xai|pplx|hf|csk|nvapi|fw|r8|key)[-_](?=[\w*.-]*[\d*])[\w*.-]{5,}[\w*]"
    r"|\bAIza[\w-]{10,}|\bAKIA\w{12,}|\beyJ[\w-]{6,}\.[\w.-]*\w"
    r"|(?i:\b(?:bearer|basic)\s+(?=[\w*.+/=-]*[\d*])[\w*.+/=-]{5,}[\w*=])"
    r"|\b(?:org|proj|acct|user)[-_](?=[A-Za-z]*\d)[A-Za-z0-9]{8,}"
    r"|(?<=[?&]key=)[^&\s]+"
)
MASK = "[removed]"


def failure(status: int, body: bytes) -> Failure:
    """The error of an answer whose status is not 2xx."""
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _plain(status, body)
    return _of_tree(tree, status)


def failure_within(tree: Any) -> Failure:
    """The error told inside an answer that began as a good one; its status is what it names."""
    found = _of_tree(tree, _UNKNOWN_STATUS)
    code = found.code or ""
    if code.isdecimal() and int(code[:4]) in _HTTP_ERRORS:
        return found._replace(status=int(code))
    words = f"{found.type} {code}".lower()
    for part, status in _STATUSES:
        if part in words:
            return found._replace(status=status)
    return found


def rendered(error: Failure) -> bytes:
    """The body of an error answer."""
    return msgspec.json.encode({"error": _fields(error)})


def stream_error(operation: Operation, error: Failure, *, sequence: int = 0) -> bytes:
    """The event that tells a client within its stream, in the form its library raises for.

    No [DONE] follows it, lest a client takes what it has for the whole.
    """
    fields = _fields(error)
    if operation is not Operation.RESPONSES:
        return b"data: " + msgspec.json.encode({"error": fields}) + b"\n\n"
    event = {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "sequence_number": sequence,
        # The official clients raise only for this one.
        "error": fields,
    }
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


def masked(text: str) -> str:
    """The text without keys and account ids, printable, and not endless."""
    shown = text[: 2 * MESSAGE_CHARACTERS_MAX]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() or c in "\n\t" else " " for c in shown)
    return _SECRETS.sub(MASK, shown)[:MESSAGE_CHARACTERS_MAX]


def _fields(error: Failure) -> dict[str, str | None]:
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }


def _plain(status: int, body: bytes) -> Failure:
    """Of an answer that is no JSON. Pages of proxies are not shown."""
    text = body[: 4 * _TEXT_CHARACTERS_MAX].decode("utf-8", "replace").strip()
    if not text or text.startswith("<") or len(text) > _TEXT_CHARACTERS_MAX:
        text = f"The vendor answered with status {status}"
    return Failure(masked(text), _type(status), None, None, status)


def _of_tree(tree: Any, status: int) -> Failure:
    if isinstance(tree, list) and tree:
        tree = tree[0]
    outer = tree if isinstance(tree, dict) else {"message": tree}
    inner = outer.get("error") or outer.get("message") or outer.get("detail") or outer.get("errors")
    if isinstance(inner, list) and inner:
        inner = inner[0]
    fields = {**outer, **inner} if isinstance(inner, dict) else outer
    text = _message(fields) if isinstance(inner, dict) else inner
    return Failure(
        masked(text)
        if isinstance(text, str) and text
        else f"The vendor answered with status {status}",
        _word(fields.get("type"), drop="error") or _type(status),
        _word(fields.get("code")),
        _param(fields),
        status,
    )


def _message(fields: dict[str, Any]) -> Any:
    """The text of an error object; FastAPI's has it in `detail` or `msg`, often as a list."""
    text = fields.get("message") or fields.get("msg") or fields.get("detail")
    for _ in range(4):
        if isinstance(text, list):
            text = text[0] if text else None
        elif isinstance(text, dict):
            text = text.get("message") or text.get("msg") or text.get("detail")
    return text


def _param(fields: dict[str, Any]) -> str | None:
    loc = fields.get("loc")
    if isinstance(loc, list):
        return _word(".".join(str(part) for part in loc[1:] if isinstance(part, str | int)))
    return _word(fields.get("param"))


def _word(value: Any, *, drop: str | None = None) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or value == drop:
        return None
    return masked(value)[:_WORD_CHARACTERS_MAX]


def _type(status: int) -> str:
    other = "server_error" if status in _SERVER_ERRORS else "invalid_request_error"
    return _TYPES.get(status, other)

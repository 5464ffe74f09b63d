"""Errors of the management API, as RFC 9457 has them: one document for people and programs."""

import msgspec
import orjson

from gateway.errors import GatewayError, redacted

CONTENT_TYPE = "application/problem+json"

_TITLES = {
    400: "Bad request",
    401: "Not signed in",
    402: "Payment required",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    412: "Changed meanwhile",
    413: "Too large",
    415: "Unsupported media type",
    429: "Too many requests",
    500: "Internal error",
    502: "Bad gateway",
    503: "Unavailable",
    504: "Timeout",
}


class PaymentDeclined(GatewayError):
    """402: nothing was paid. `is_hard`: the same method will not pay another day, either.

    No call is told so.
    """

    status, type = 402, "payment_declined"

    def __init__(self, decline: str, *, is_hard: bool, payment: str) -> None:
        what = "Pay with another method" if is_hard else "Try again later, or with another method"
        super().__init__(
            f"The payment was declined ({decline}); nothing was charged. {what}.",
            code="payment_declined",
            extra={"decline": decline, "is_hard": is_hard, "purchase_id": payment},
        )


class ChangedMeanwhile(GatewayError):
    """412: If-Match names an older version. Calls of the data plane have none."""

    status, type = 412, "invalid_request_error"

    def __init__(self) -> None:
        super().__init__(
            "It was changed meanwhile. Read it again, and send your change with the ETag of that"
            " answer.",
            code="changed_meanwhile",
        )


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong. Details of some codes stand beside these members."""

    type: str  # names the kind of problem; the same as `code`
    title: str
    status: int
    detail: str  # says what to do
    code: str
    param: str | None = None  # the member of the request that is to blame


def problem_of(error: GatewayError) -> bytes:
    """The document of this error."""
    status = error.status_now
    members = {
        "type": f"about:tollgate#{error.code}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": redacted(error.message),
        "code": error.code,
        "param": error.param,
        **error.extra,
    }
    return orjson.dumps(members)

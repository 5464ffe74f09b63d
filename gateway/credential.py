"""What a client presents as its API key, and the refusals: nothing is looked up here."""

from enum import StrEnum

from gateway.errors import BadRequest, Unauthenticated, Unavailable
from gateway.keys import is_key_in_query, is_well_formed


class Reason(StrEnum):
    """Why a key does not work, for our metrics and logs. Clients are told less."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"


class AuthError(Unauthenticated):
    """401. The answer for a malformed, unknown, revoked and expired key is the same."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(
            "You didn't provide an API key. Send it as 'Authorization: Bearer tg_live_...'."
            if reason is Reason.MISSING
            else "Incorrect API key provided.",
            code="missing_api_key" if reason is Reason.MISSING else "invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        self.reason = reason


class AuthUnavailable(Unavailable):
    """503: nobody can tell at the moment whether the key works."""

    def __init__(self, retry_after_s: int = 1) -> None:
        super().__init__(
            "API keys cannot be checked at the moment. Try again.",
            code="auth_unavailable",
            retry_after_s=retry_after_s,
        )
        self.retry_after_s = retry_after_s


def presented(authorization: str | None, api_key: str | None, *, query: str = "") -> str | None:
    """The header to authenticate by: Authorization, else x-api-key; `None` if there is neither.

    A key in the query string is refused whatever the headers say: it stands in logs by now.
    """
    if is_key_in_query(query):
        raise BadRequest(
            "API keys belong in the Authorization header, not in the URL. Revoke this one:"
            " URLs are kept in logs.",
            code="api_key_in_url",
        )
    return authorization or api_key


def key_in(header: str | None) -> str:
    """The well-formed key in a header's value, with `Bearer` before it or not; else `AuthError`."""
    if not header:
        raise AuthError(Reason.MISSING)
    if header.startswith("Bearer "):
        key = header[7:]
    else:
        scheme, space, rest = header.partition(" ")
        key = rest.strip() if space and scheme.lower() == "bearer" else header
    if not is_well_formed(key):
        raise AuthError(Reason.MALFORMED)
    return key

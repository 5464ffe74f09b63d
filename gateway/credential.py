"""What a client presents as its API key, and the refusals: nothing is looked up here."""

from enum import StrEnum

from gateway.errors import BadRequest, Unauthenticated, Unavailable
from gateway.keys import is_key_in_query, is_well_formed

_SHOWN_MAX = 8  # a proxy before us carries several keys on one connection


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


class Shown:
    """The digests of the headers that one connection has shown lately, by their text.

    A connection shows the same key with each call, so that it is read and digested once. Whether
    the key still works is asked for each call all the same. A dict looks at keyed hashes first:
    its time does not tell how much of somebody's key was guessed.
    """

    __slots__ = ("_digests",)

    def __init__(self) -> None:
        self._digests: dict[str | None, bytes] = {}

    def digest_of(self, header: str | None) -> bytes | None:
        """What this header came to before; None: it was not shown here."""
        return self._digests.get(header)

    def add(self, header: str, digest: bytes) -> None:
        """Remember what this header comes to."""
        if len(self._digests) >= _SHOWN_MAX:
            self._digests.clear()
        self._digests[header] = digest

    def clear(self) -> None:
        """Forget them: the connection is closed."""
        self._digests.clear()


def presented(authorization: str | None, api_key: str | None, *, query: str = "") -> str | None:
    """The header to authenticate by: Authorization, else x-api-key; `None` if there is neither.

    A key in the query string is refused whatever the headers say: it stands in logs by now.
    """
    if query and is_key_in_query(query):
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

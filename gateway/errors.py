"""Every way a call can fail for its caller, as one tree, rendered in one place.

GatewayError                status  code                      raised when
  BadRequest                400     (by field)                the body or a header cannot be used
  Unauthenticated           401     invalid_api_key           no key, or none that works
  PaymentRequired           402     insufficient_credit       the wallet cannot pay the worst case
    CapSpent                402     budget_exceeded           a cap of the key is spent
  PaymentDeclined           402     payment_declined          a bank or card does not pay
  Forbidden                 403     model_not_allowed         the key may not use this model
                                    address_not_allowed       ... or not from there
  NotFound                  404     (by thing)                no such model, price or path
  MethodNotAllowed          405     method_not_allowed
  Conflict                  409     (by thing)                it contradicts what was done before
  ClientTooSlow             408     request_timeout           the request did not arrive in time
  TooLarge                  413     request_too_large
  UnsupportedMedia          415     unsupported_media_type
  TooMany                   429     (by limit)                a rate, a slot or money held by others
  UpstreamRefused           4xx     (the vendor's)            the vendor refused the call
  BadGateway                502     (by cause)                the vendor failed or is unreachable
  Unavailable               503     (by cause)                admission is closed; nothing charged
    LedgerAway              503     ledger_unavailable        ... because Redis does not answer
  GatewayTimeout            504     upstream_timeout          the vendor did not answer in time
  LoopDetected              508     loop_detected             a gateway calls itself

An error carries its status, its code and what a program may want to know of it (`extra`).
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from ledger.money import usd_text

_KEY = re.compile(r"tg_[a-z]+_\w+")


class GatewayError(Exception):
    """A failure with the answer it deserves."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.code, self.param = message, code, param
        self.extra, self.headers = dict(extra or {}), dict(headers or {})

    @property
    def status_now(self) -> int:
        """The HTTP status of this very error."""
        return self.status


class Internal(GatewayError):
    """A bug of ours; the log has more."""


class BadRequest(GatewayError):
    """400."""

    status, type = 400, "invalid_request_error"


class Unauthenticated(GatewayError):
    """401. One text for unknown, revoked and expired keys: it tells an attacker nothing."""

    status, type = 401, "invalid_request_error"


class PaymentRequired(GatewayError):
    """402."""

    status, type = 402, "insufficient_credit"

    def __init__(self, *, needed: int, affordable: int) -> None:
        super().__init__(
            f"This call may cost up to {usd_text(needed)}, but the organization can only afford"
            f" {usd_text(affordable)}. Add credits, lower max_tokens or shorten the prompt.",
            code="insufficient_credit",
            extra={"needed_nanos": needed, "affordable_nanos": affordable},
            headers={"x-should-retry": "false"},
        )


class CapSpent(GatewayError):
    """402, for a budget of the key rather than the wallet."""

    status, type = 402, "insufficient_credit"

    def __init__(self, scope: str, *, needed: int, affordable: int, resets_in_s: int) -> None:
        reset = f" It resets in {resets_in_s} s." if resets_in_s else " It does not reset."
        super().__init__(
            f"This call may cost up to {usd_text(needed)}, but the budget {scope} has only"
            f" {usd_text(affordable)} left.{reset}",
            code="budget_exceeded",
            extra={
                "needed_nanos": needed,
                "affordable_nanos": affordable,
                "budget": scope,
                "resets_in_s": resets_in_s,
            },
            headers={"x-should-retry": "false"},
        )


class Forbidden(GatewayError):
    """403."""

    status, type = 403, "invalid_request_error"


class NotFound(GatewayError):
    """404."""

    status, type = 404, "invalid_request_error"


class MethodNotAllowed(GatewayError):
    """405."""

    status, type = 405, "invalid_request_error"


class Conflict(GatewayError):
    """409."""

    status, type = 409, "invalid_request_error"


class ClientTooSlow(GatewayError):
    """408."""

    status, type = 408, "invalid_request_error"


class TooLarge(GatewayError):
    """413."""

    status, type = 413, "invalid_request_error"


class UnsupportedMedia(GatewayError):
    """415."""

    status, type = 415, "invalid_request_error"


class TooMany(GatewayError):
    """429, always with Retry-After."""

    status, type = 429, "rate_limit_error"

    def __init__(self, message: str, *, code: str, retry_after_ms: int, scope: str) -> None:
        super().__init__(
            message,
            code=code,
            extra={"limit": scope},
            headers={
                "retry-after": str(max(1, -(-retry_after_ms // 1000))),
                "retry-after-ms": str(max(1, retry_after_ms)),
            },
        )


class UpstreamRefused(GatewayError):
    """The vendor's own refusal, passed on with its status."""

    type = "upstream_error"

    def __init__(
        self, status: int, message: str, *, kind: str, code: str | None, param: str | None
    ) -> None:
        super().__init__(message, code=code or "upstream_refused", param=param)
        self._status, self._kind = status, kind

    @property
    def status_now(self) -> int:
        """The vendor's status."""
        return self._status

    @property
    def kind(self) -> str:
        """The vendor's word for it."""
        return self._kind


class BadGateway(GatewayError):
    """502."""

    status, type = 502, "upstream_error"


class Unavailable(GatewayError):
    """503, always with Retry-After."""

    status, type = 503, "server_error"

    def __init__(self, message: str, *, code: str, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code, headers={"retry-after": str(retry_after_s)})


class LedgerAway(Unavailable):
    """503: Redis cannot be asked what a wallet has; see `gateway.proxy.grace`."""


class GatewayTimeout(GatewayError):
    """504."""

    status, type = 504, "upstream_error"


class LoopDetected(GatewayError):
    """508."""

    status, type = 508, "invalid_request_error"

    def __init__(self) -> None:
        super().__init__(
            "This request comes from a Tollgate gateway: a provider's base_url in config.yaml"
            " points at a gateway instead of a vendor.",
            code="loop_detected",
        )


def redacted(text: str) -> str:
    """The text without keys and tokens of ours in it."""
    return _KEY.sub("[secret]", text)


def body(error: GatewayError) -> bytes:
    """The error as OpenAI's clients expect it, our details beside the four usual fields."""
    kind = error.kind if isinstance(error, UpstreamRefused) else error.type
    return orjson.dumps(
        {
            "error": {
                # A path or a model's name may be a key that somebody put in the wrong place.
                "message": redacted(error.message),
                "type": kind,
                "param": error.param,
                "code": error.code,
                **error.extra,
            }
        }
    )

"""How payments can be configured, and what must not be: a part of `gateway.settings`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from gateway.bounds import CENT, USD_MAX, Between, Endpoint, Format, Name
from providers.adapter import Secret


class PaymentProcessor(StrEnum):
    NONE = "none"  # credits are the operator's to give
    SANDBOX = "sandbox"  # for development: nobody pays anything
    STRIPE = "stripe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripe:
    """An account at Stripe."""

    secret_key: Secret | None = None
    publishable_key: Name | None = None
    webhook_secret: Annotated[Secret, Between(16, 1_000)] | None = None
    api_url: Endpoint | None = None  # None: Stripe's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Payments:
    """How credits are bought."""

    processor: PaymentProcessor = PaymentProcessor.NONE
    stripe: Stripe = Stripe()
    purchase_min_nanos: Annotated[int, Format.USD, Between(CENT, USD_MAX)] = field(
        default=10_000_000_000, metadata={"key": "purchase_min_usd"}
    )
    nano_eur_per_usd: Annotated[int, Format.USD, Between(CENT, USD_MAX)] | None = field(
        default=None, metadata={"key": "eur_per_usd"}
    )


def objections(payments: Payments, *, public_url: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with them, by the path of a setting.

    The sandbox gives credits for nothing, and vendors want money for what they are spent on: so it
    serves no site that the world reaches over TLS, and stands beside no key of a real processor.
    """
    stripe = payments.stripe
    match payments.processor:
        case PaymentProcessor.NONE:
            return
        case PaymentProcessor.SANDBOX:
            if public_url.startswith("https://") and not _is_local(public_url):
                said = f"sandbox gives credits for nothing, and {public_url} is for everybody"
                yield ("payments", "processor"), f"{said}: use stripe, or none"
            if stripe.secret_key:
                said = "is sandbox, and payments.stripe.secret_key is set: nobody gets credits for"
                yield ("payments", "processor"), f"{said} nothing there. Set stripe, or no key"
        case PaymentProcessor.STRIPE:
            for name in ("secret_key", "publishable_key", "webhook_secret"):
                if not getattr(stripe, name):
                    yield ("payments", "stripe", name), "is needed with processor: stripe"


def _is_local(url: str) -> bool:
    """Whether only this machine comes in by it."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

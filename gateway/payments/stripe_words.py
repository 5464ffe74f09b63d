"""What Stripe's objects say, in our words. Pure.

Few members are read, all of which the types of Stripe's client name. A PaymentIntent tells a
payment's end; a Session only leads to one.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from stripe import SignatureVerificationError, StripeObject, WebhookSignature

from gateway.payments.processor import (
    Coins,
    Document,
    Event,
    Forged,
    Method,
    MethodKind,
    Order,
    Payment,
    Progress,
    Returned,
)

PAGE = "page"  # marks what is paid at a page, where a declined card may be followed by another
PAGE_METHODS: Mapping[str, list[str]] = {
    "usd": ["card", "us_bank_account"],
    "eur": ["card", "sepa_debit"],
}
WAITING = frozenset({"requires_action", "requires_confirmation"})  # for a payer who is away
EVENT_AGE_S_MAX = 300

# Where the bank or the card says that it will never be paid; others may go well another day.
# Stripe lists more codes than these; one that is not here is tried again once, and no harm is done.
HARD = frozenset(
    {
        *("account_closed", "authentication_required", "card_not_supported"),
        *("currency_not_supported", "debit_not_authorized", "do_not_try_again", "expired_card"),
        *("fraudulent",),
        *("incorrect_cvc", "incorrect_number", "incorrect_zip", "invalid_account"),
        *("invalid_cvc", "invalid_expiry_month", "invalid_expiry_year", "invalid_number"),
        *("lost_card", "merchant_blacklist", "new_account_information_available"),
        *("no_account", "not_permitted", "offline_pin_required", "online_or_offline_pin_required"),
        *("payment_intent_authentication_failure", "pickup_card", "restricted_card"),
        *("revocation_of_all_authorizations", "revocation_of_authorization"),
        *("security_violation", "service_not_allowed", "stolen_card", "stop_payment_order"),
        *("testmode_decline", "transaction_not_allowed"),
    }
)

_BY_STATUS = {
    "succeeded": Progress.PAID,
    "processing": Progress.PROCESSING,
    "requires_action": Progress.OPEN,
    "requires_confirmation": Progress.OPEN,
    "requires_payment_method": Progress.DECLINED,
    "canceled": Progress.DECLINED,
}


def plain(found: object) -> dict[str, Any]:
    """An object of the client's as JSON has it; {} for none."""
    if isinstance(found, StripeObject):
        return dict(found.to_dict())
    return dict(found) if isinstance(found, Mapping) else {}


def method(found: Mapping[str, Any]) -> Method:
    """A PaymentMethod."""
    kind = MethodKind(found["type"])
    more = found.get(kind.value) or {}
    expires = f"{more['exp_year']}-{more['exp_month']:02d}" if kind is MethodKind.CARD else None
    brand = more.get("brand") or more.get("bank_name") or more.get("bank_code") or ""
    return Method(str(found["id"]), kind, str(brand), str(more.get("last4") or ""), expires)


def declined(order: Order, error: Mapping[str, Any]) -> Payment:
    """The error with which a charge was declined."""
    intent = error.get("payment_intent") or {}
    code = str(error.get("decline_code") or error.get("code") or "declined")
    return Payment(
        order=order.id,
        progress=Progress.DECLINED,
        coins=order.coins,
        reference=intent.get("id"),
        decline=code,
        is_hard=code in HARD,
    )


def by_intent(intent: Mapping[str, Any], *, order: str) -> Payment:
    """A PaymentIntent whose payer is away."""
    progress = _BY_STATUS.get(str(intent.get("status")), Progress.OPEN)
    error = intent.get("last_payment_error") or {}
    code = str(error.get("decline_code") or error.get("code") or "authentication_required")
    is_declined = progress is Progress.DECLINED
    # What was received is the truth about money; not every object has it.
    amount = intent.get("amount_received") if progress is Progress.PAID else None
    return Payment(
        order=order,
        progress=progress,
        coins=Coins(int(amount or intent["amount"]), str(intent["currency"])),
        reference=str(intent["id"]),
        decline=code if is_declined else None,
        is_hard=is_declined and code in HARD,
    )


def by_page(page: Mapping[str, Any]) -> Payment:
    """A Checkout Session, with its PaymentIntent in it or only that one's id."""
    inner = page.get("payment_intent")
    intent: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {"id": inner}
    match page.get("status"), page.get("payment_status"):
        case _, "paid":
            progress = Progress.PAID
        case "complete", _:
            was_declined = intent.get("status") in ("requires_payment_method", "canceled")
            progress = Progress.DECLINED if was_declined else Progress.PROCESSING
        case "expired", _:
            progress = Progress.DECLINED
        case _:
            progress = Progress.OPEN
    is_declined = progress is Progress.DECLINED
    code = "expired" if page.get("status") == "expired" else "declined"
    return Payment(
        order=str(page.get("client_reference_id")),
        progress=progress,
        coins=Coins(int(page.get("amount_total") or 0), str(page.get("currency"))),
        reference=intent.get("id"),
        checkout=str(page["id"]),
        url=page.get("url"),
        decline=code if is_declined else None,
        is_hard=is_declined,
    )


def returned(refund: Mapping[str, Any]) -> Returned:
    """A Refund."""
    match refund.get("status"):
        case "succeeded":
            progress = Progress.PAID
        case "failed" | "canceled":
            progress = Progress.DECLINED
        case _:
            progress = Progress.PROCESSING
    return Returned(str(refund["id"]), progress)


def document(invoice: Mapping[str, Any]) -> Document:
    """An Invoice."""
    amount = invoice.get("amount_paid") or invoice.get("total") or 0
    return Document(
        reference=str(invoice["id"]),
        order=(invoice.get("metadata") or {}).get("order"),
        number=str(invoice.get("number") or ""),
        coins=Coins(int(amount), str(invoice["currency"])),
        at=datetime.fromtimestamp(int(invoice["created"]), UTC),
        url=invoice.get("hosted_invoice_url") or invoice.get("invoice_pdf"),
    )


def event(body: bytes, signature: str | None, *, secret: str, now: datetime) -> Event:
    """A signed event; `Forged` if it is not signed, not with this secret, or not just now."""
    try:
        WebhookSignature.verify_header(body, signature, secret)
    except (SignatureVerificationError, UnicodeDecodeError) as error:
        raise Forged("the signature is not Stripe's") from error
    pairs = [each.partition("=") for each in (signature or "").split(",")]
    moments = [value for name, _, value in pairs if name.strip() == "t"]
    # One, for of two the client may have taken the other.
    if len(moments) != 1 or not re.fullmatch(r"[0-9]{1,12}", moments[0]):
        raise Forged("the signature has no moment")
    # Neither old, for it could be a copy, nor ahead of us, for it would stay good for longer.
    if abs(now.timestamp() - int(moments[0])) > EVENT_AGE_S_MAX:
        raise Forged("it was signed more than five minutes ago, or will be")
    try:
        said = orjson.loads(body)
        found, kind = said["data"]["object"], str(said["type"])
        return Event(str(said["id"]), kind, _told(kind, found))
    except (ValueError, TypeError, KeyError) as error:
        raise Forged("it is no event") from error


def _told(kind: str, found: Mapping[str, Any]) -> Payment | None:
    """The payment that an event is about; None: nothing to do for it."""
    what = found.get("object")
    if what == "checkout.session" and found.get("client_reference_id"):
        payment = by_page(found)
        failed = kind == "checkout.session.async_payment_failed"
        return (
            payment._replace(progress=Progress.DECLINED, decline="declined") if failed else payment
        )
    if what != "payment_intent":
        return None
    marks = found.get("metadata") or {}
    if not marks.get("order"):
        return None
    payment = by_intent(found, order=str(marks["order"]))
    is_page = marks.get("by") == PAGE
    # At a page a declined card is no end, and what waits for a payer is the page's to tell of.
    is_end = payment.progress is Progress.PAID or not is_page
    return payment if is_end and payment.progress is not Progress.OPEN else None

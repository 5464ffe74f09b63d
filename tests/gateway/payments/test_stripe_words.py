"""Stripe's objects, read as what they mean for a payment."""

from typing import Any

import orjson
import pytest

from gateway.payments import stripe_words as words
from gateway.payments.processor import Coins, Progress
from tests.gateway.payments import played
from tests.gateway.payments.played import filled


def intent(status: str, received: str = "0", error: str = "null") -> dict[str, Any]:
    text = filled(played.INTENT, order="o1", status=status, received=received, error=error)
    return dict(orjson.loads(text))


def page(status: str, paid: str, inner: str = '"pi_1"') -> dict[str, Any]:
    text = filled(played.SESSION, order="o1", status=status, paid=paid, intent=inner, url="null")
    return dict(orjson.loads(text))


@pytest.mark.parametrize(
    ("status", "progress"),
    [
        ("succeeded", Progress.PAID),
        ("processing", Progress.PROCESSING),
        ("requires_payment_method", Progress.DECLINED),
        ("canceled", Progress.DECLINED),
        ("requires_action", Progress.OPEN),
        ("a status of a later release", Progress.OPEN),
    ],
)
def test_an_intents_status_is_how_far_it_is(status: str, progress: Progress) -> None:
    found = words.by_intent(intent(status, "1000"), order="o1")
    assert (found.progress, found.coins) == (progress, Coins(1_000, "usd"))


def test_what_was_received_counts_and_not_what_was_asked_for() -> None:
    found = words.by_intent(intent("succeeded", "999"), order="o1")
    assert found.coins == Coins(999, "usd")


@pytest.mark.parametrize(
    ("code", "is_hard"),
    [("insufficient_funds", False), ("generic_decline", False), ("stolen_card", True)],
)
def test_a_decline_is_hard_if_stripe_says_not_to_try_again(code: str, *, is_hard: bool) -> None:
    error = f'{{"code": "card_declined", "decline_code": "{code}"}}'
    found = words.by_intent(intent("requires_payment_method", error=error), order="o1")
    assert (found.decline, found.is_hard) == (code, is_hard)


@pytest.mark.parametrize(
    ("status", "paid", "inner", "progress"),
    [
        ("open", "unpaid", "null", Progress.OPEN),
        ("complete", "paid", '"pi_1"', Progress.PAID),
        ("complete", "unpaid", '"pi_1"', Progress.PROCESSING),
        ("complete", "unpaid", '{"id": "pi_1", "status": "requires_payment_method"}', "declined"),
        ("expired", "unpaid", "null", Progress.DECLINED),
    ],
)
def test_a_pages_status_is_how_far_it_is(status: str, paid: str, inner: str, progress: str) -> None:
    found = words.by_page(page(status, paid, inner))
    assert (found.progress, found.order) == (progress, "o1")
    assert found.reference == (None if inner == "null" else "pi_1")


@pytest.mark.parametrize(
    ("status", "progress"),
    [
        ("succeeded", Progress.PAID),
        ("pending", Progress.PROCESSING),
        ("requires_action", Progress.PROCESSING),
        ("failed", Progress.DECLINED),
        ("canceled", Progress.DECLINED),
    ],
)
def test_a_refund_is_done_on_its_way_or_given_up(status: str, progress: Progress) -> None:
    assert words.returned({"id": "re_1", "status": status}).progress is progress


def test_an_invoice_names_the_order_it_is_for() -> None:
    (invoice,) = orjson.loads(filled(played.INVOICES, order="o1"))["data"]
    found = words.document(invoice)
    assert (found.order, found.number, found.coins) == ("o1", "A1B2C3-0001", Coins(1_000, "usd"))
    assert found.url == "https://invoice.stripe.com/i/acct_1/test_1"


def test_nothing_is_an_empty_object() -> None:
    assert (words.plain(None), words.plain({"a": 1})) == ({}, {"a": 1})

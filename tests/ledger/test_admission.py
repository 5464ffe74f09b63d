"""The words of admission, as far as others count on their order."""

from ledger.admission import Cap, Hold, LedgerUnavailable, Rate, Slot


def test_the_functions_of_redis_read_holds_by_position() -> None:
    """A field is added at the end, never in between: gateways of two releases work side by side."""
    assert Hold._fields[:9] == (
        *("call_id", "partition", "wallet", "amount"),
        *("caps", "rates", "slots", "lease_ms", "ticket"),
    )
    assert Cap._fields[:3] == ("id", "limit", "starts_ms")
    assert Rate._fields[:3] == ("id", "per_minute", "take")
    assert Slot._fields[:2] == ("id", "limit")


def test_a_ledger_that_is_away_says_when_to_come_back() -> None:
    away = LedgerUnavailable("Redis does not answer")

    assert (away.reason, away.retry_after_s) == ("Redis does not answer", 1)

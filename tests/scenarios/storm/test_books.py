"""The comparison of Redis with Postgres: what it must find, and what it must let pass."""

import pytest

from ledger.functions import Image, WalletImage
from tests.scenarios.storm.books import different

pytestmark = pytest.mark.scenario

WINDOW = "key:7@0"


def there(wallet: str, *, base: int = 100, spent: int = 0, held: int = 0) -> Image:
    """What Redis has: one wallet."""
    image = WalletImage(wallet, base - spent - held, held, base, spent, 1)
    return Image("0-0", (image,), "0")


@pytest.mark.parametrize("wallet", ["acme", WINDOW])
def test_what_both_say_is_the_same(wallet: str) -> None:
    assert not different(there(wallet, spent=40), [(wallet, 100, 40)])


@pytest.mark.parametrize("wallet", ["acme", WINDOW])
def test_another_sum_or_what_is_held_is_found(wallet: str) -> None:
    assert different(there(wallet, spent=40), [(wallet, 100, 30)])
    assert different(there(wallet, held=10), [(wallet, 100, 0)])
    assert different(there(wallet, spent=40), [])


def test_a_wallet_that_one_of_them_lacks_is_found() -> None:
    assert different(there("acme"), [])
    assert different(there("acme"), [("acme", 100, 0), ("other", 5, 0)])


def test_a_window_nobody_spent_in_may_be_missing_in_either() -> None:
    assert not different(there(WINDOW), [])
    assert not different(there("acme"), [("acme", 100, 0), (WINDOW, 100, 40)])
    assert different(there(WINDOW, held=10), [])

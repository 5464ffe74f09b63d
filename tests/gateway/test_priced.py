"""The copy of the ids is the package's."""

from genai_prices.data import providers

from gateway.priced import PRICED


def test_every_vendor_of_the_base_table_can_be_configured_and_no_other() -> None:
    assert {provider.id for provider in providers} == PRICED

"""The accents of OpenAI's dialect."""

import pytest

from providers.custom import QUIRKS, Quirks, UsageIn


def test_the_default_of_a_target_is_an_accent() -> None:
    assert QUIRKS["openai"] == Quirks(searches=True)


@pytest.mark.parametrize("name", QUIRKS)
def test_a_vendor_that_is_not_asked_reports_unasked(name: str) -> None:
    quirks = QUIRKS[name]

    assert quirks.usage_asked or quirks.usage_in in {UsageIn.LAST_CHOICE, UsageIn.EVERY_CHUNK}


@pytest.mark.parametrize("name", QUIRKS)
def test_names_are_fit_for_a_configuration_file(name: str) -> None:
    assert name == name.lower()
    assert name.replace("-", "").isalnum()


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        QUIRKS["openai"] = Quirks()  # type: ignore[index]  # that is the rule

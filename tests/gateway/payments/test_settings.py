"""What must not be configured is refused, with what to do."""

import pytest

from gateway.config import ConfigErrors, read

KEYS = "secret_key: sk_test_1, publishable_key: pk_test_1, webhook_secret: whsec_0123456789abcdef"


def mistakes(text: str) -> list[str]:
    try:
        read(text, {})
    except ConfigErrors as errors:
        return [str(mistake) for mistake in errors.mistakes]
    return []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8081", "https://localhost:8081", "http://gate.internal:8081"]
)
def test_the_sandbox_serves_developers(url: str) -> None:
    text = f"management: {{public_url: '{url}'}}\npayments: {{processor: sandbox}}"
    assert mistakes(text) == []


def test_the_sandbox_serves_no_site_of_the_worlds() -> None:
    text = "management: {public_url: 'https://gate.example'}\npayments: {processor: sandbox}"
    (mistake,) = mistakes(text)
    assert "gives credits for nothing" in mistake


def test_the_sandbox_stands_beside_no_key_of_stripes() -> None:
    (mistake,) = mistakes(f"payments: {{processor: sandbox, stripe: {{{KEYS}}}}}")
    assert "stripe.secret_key is set" in mistake


@pytest.mark.parametrize("missing", ["secret_key", "publishable_key", "webhook_secret"])
def test_stripe_needs_all_its_keys(missing: str) -> None:
    assert mistakes(f"payments: {{processor: stripe, stripe: {{{KEYS}}}}}") == []
    left = ", ".join(one for one in KEYS.split(", ") if not one.startswith(missing))
    (mistake,) = mistakes(f"payments: {{processor: stripe, stripe: {{{left}}}}}")
    assert missing in mistake


def test_an_empty_or_short_webhook_secret_is_none() -> None:
    short = KEYS.replace("whsec_0123456789abcdef", "whsec_1")
    assert mistakes(f"payments: {{processor: stripe, stripe: {{{short}}}}}") != []


@pytest.mark.parametrize("least", ["0", "0.001", "-5"])
def test_the_least_purchase_is_a_cent_or_more(least: str) -> None:
    assert mistakes(f"payments: {{purchase_min_usd: {least}}}") != []

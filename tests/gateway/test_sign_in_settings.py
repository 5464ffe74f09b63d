"""Issuers in the configuration: what they must say."""

from collections.abc import Mapping

import pytest

from gateway.config import ConfigErrors, read

GOOD = {"name": "google", "issuer": "https://accounts.google.com", "client_id": "us"}


def wrong(*issuers: Mapping[str, object]) -> list[str]:
    """The mistakes, without their lines."""
    try:
        read(f"management: {{sign_in: {[dict(one) for one in issuers]!r}}}", {})
    except ConfigErrors as error:
        return [f"{one.path}: {one.message}" for one in error.mistakes]
    return []


def test_what_is_left_out_is_the_usual() -> None:
    (issuer,) = read(f"management: {{sign_in: [{GOOD!r}]}}", {}).management.sign_in
    assert issuer.scopes == ("openid", "email", "profile")
    assert not issuer.trust_emails, "trust is given by who configures it"
    assert issuer.client_secret is None


def test_its_secret_comes_from_the_environment() -> None:
    said = f"management: {{sign_in: [{ {**GOOD, 'client_secret': '${S}'}!r}]}}"
    (issuer,) = read(said, {"S": "known to nobody"}).management.sign_in
    assert issuer.client_secret is not None
    assert issuer.client_secret.reveal() == "known to nobody"
    assert wrong({**GOOD, "client_secret": "${S}"}) == [
        "management.sign_in[0].client_secret: the environment variable S is not set"
    ]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", "Google"),
        ("name", "a/b"),
        ("name", "-"),
        ("issuer", "accounts.google.com"),
        ("issuer", "http://accounts.google.com"),
        ("issuer", "ftp://accounts.google.com"),
        ("issuer", "https://accounts.google.com?x=y"),
        ("scopes", ["email"]),
    ],
)
def test_a_setting_that_cannot_be_is_a_mistake(setting: str, value: object) -> None:
    (said,) = wrong({**GOOD, setting: value})
    assert said.startswith(f"management.sign_in[0].{setting}: ")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_an_issuer_on_this_machine_may_be_without_tls(host: str) -> None:
    assert wrong({**GOOD, "issuer": f"http://{host}:9400"}) == []


def test_no_two_are_the_same() -> None:
    said = wrong(GOOD, GOOD)
    assert [one.partition(": ")[0] for one in said] == [
        "management.sign_in[1].issuer",
        "management.sign_in[1].name",
    ]

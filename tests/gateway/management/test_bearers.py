"""The texts that stand for somebody are told apart without any lookup."""

import secrets

import pytest

from gateway.errors import redacted
from gateway.keys import issue as issue_key
from gateway.management.bearers import BearerKind, issue, kind_of


@pytest.mark.parametrize("kind", BearerKind)
def test_each_kind_is_recognised_and_none_is_another(kind: BearerKind) -> None:
    made = issue(kind, secrets.token_bytes, str.encode)
    text = made.secret.reveal()

    assert kind_of(text) is kind
    assert (made.digest, made.last4) == (text.encode(), text[-4:])
    for cut in (text[:-1], text + "0", text.upper(), text[:-1] + "!", text[:-1] + "ä"):
        assert kind_of(cut) is None


@pytest.mark.parametrize("kind", BearerKind)
def test_none_is_repeated_in_an_error(kind: BearerKind) -> None:
    text = issue(kind, secrets.token_bytes, str.encode).secret.reveal()
    assert redacted(f"There is no {text} here.") == "There is no [secret] here."


def test_an_api_key_is_none_of_them() -> None:
    assert kind_of(issue_key(bytes(32)).secret.reveal()) is None

"""The words of the contract."""

import pickle

import pytest

from providers.adapter import BadCall, Operation, Secret
from tests.providers.vendor_bytes import target


def test_a_secret_is_not_shown_by_accident() -> None:
    secret = Secret("sk-canary")
    shown = [str(secret), repr(secret), f"{secret:>20}", str(target(api_key=secret))]

    assert "canary" not in "".join(shown)
    assert secret.reveal() == "sk-canary"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_an_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret("x")


def test_an_operation_is_its_path() -> None:
    assert f"/v1/{Operation.CHAT}" == "/v1/chat/completions"


def test_a_bad_call_tells_field_and_code() -> None:
    error = BadCall("No.", param="n", code="invalid_value")

    assert (str(error), error.param, error.code) == ("No.", "n", "invalid_value")

"""The words of the contract."""

import copy
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from providers.adapter import BadCall, Head, Operation, Secret, UpstreamRequest
from tests.providers.vendor_bytes import target


def test_a_secret_is_not_shown_by_accident() -> None:
    secret = Secret("sk-canary")
    shown = [str(secret), repr(secret), f"{secret:>20}", str(target(api_key=secret))]

    assert "canary" not in "".join(shown)
    assert secret.reveal() == "sk-canary"
    ways: list[Callable[[Any], object]] = [pickle.dumps, json.dumps, msgspec.json.encode]
    for way in (*ways, copy.deepcopy, bytes, list):
        with pytest.raises(TypeError):
            way(secret)
    with pytest.raises(TypeError):
        secret.__getstate__()


def test_what_carries_a_secret_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret("sk-canary")
    to = target(api_key=secret, headers={"x-canary": secret})
    request = UpstreamRequest("POST", "/v1", (("authorization", "Bearer sk-canary"),), b"canary")
    carriers = (to, request, Head("/v1", request.headers), [secret], {"a": to}, ValueError(secret))
    logging.getLogger("test").error("failed %s %r", secret, to, extra={"of": request})

    shown = [f"{one!r} {one!s}" for one in carriers]

    assert "sk-canary" not in "".join(shown) + caplog.text


def test_an_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret("x")


def test_an_operation_is_its_path() -> None:
    assert f"/v1/{Operation.CHAT}" == "/v1/chat/completions"


def test_a_bad_call_tells_field_and_code() -> None:
    error = BadCall("No.", param="n", code="invalid_value")

    assert (str(error), error.param, error.code) == ("No.", "n", "invalid_value")

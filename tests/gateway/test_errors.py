"""Errors as clients get them."""

from collections.abc import Iterator

import orjson
import pytest

from gateway import errors
from gateway.metrics import CAUSES


def tree(root: type[errors.GatewayError]) -> Iterator[type[errors.GatewayError]]:
    for child in root.__subclasses__():
        yield child
        yield from tree(child)


def test_the_head_of_the_file_lists_every_error_with_its_status() -> None:
    text = errors.__doc__ or ""
    ours = [one for one in tree(errors.GatewayError) if one.__module__ == errors.__name__]

    listed = {line.split()[0]: line.split()[1] for line in text.splitlines() if " " in line.strip()}

    for one in ours:
        if one is errors.Internal:
            continue
        assert one.__name__ in listed, f"{one.__name__} is not in the tree"
        if one is not errors.UpstreamRefused:
            assert listed[one.__name__] == str(one.status), one.__name__


def test_an_error_has_the_four_fields_of_openai_and_ours_beside_them() -> None:
    body = orjson.loads(errors.body(errors.PaymentRequired(needed=2_000, affordable=1_000)))

    error = body["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert (error["needed_nanos"], error["affordable_nanos"]) == (2_000, 1_000)
    assert "max_tokens" in error["message"], "it says what to do"


@pytest.mark.parametrize("reset_s", [0, 90])
def test_a_spent_budget_says_when_it_is_renewed(reset_s: int) -> None:
    error = errors.CapSpent("key:1", needed=2, affordable=1, resets_in_s=reset_s)

    assert ("resets in 90 s" if reset_s else "does not reset") in error.message


def test_a_limit_always_says_when_to_come_back() -> None:
    error = errors.TooMany("m", code="c", retry_after_ms=0, scope="s")

    assert error.headers == {"retry-after": "1", "retry-after-ms": "1"}


def test_the_codes_of_the_tree_can_be_counted() -> None:
    for code in ("insufficient_credit", "budget_exceeded", "loop_detected"):
        assert code in CAUSES, code


def test_a_key_in_the_wrong_place_is_not_repeated() -> None:
    error = errors.NotFound("There is no '/v1/tg_live_Abc_123' here.", code="unknown_url")
    assert (
        orjson.loads(errors.body(error))["error"]["message"] == "There is no '/v1/[secret]' here."
    )

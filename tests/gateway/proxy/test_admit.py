"""What a call may cost at most, and what is said when it may not be."""

from pathlib import Path

import orjson
import pytest

from gateway import errors
from gateway.proxy.admit import check_principal, refusal
from ledger.admission import Refused
from ledger.money import Nanos
from tests.gateway.proxy.gatehouse import PRINCIPAL, Gatehouse
from tests.vendor import Vendor

NEEDED = Nanos(100)


@pytest.mark.parametrize(
    ("refused", "status", "code"),
    [
        (Refused("wallet", "w", free=40), 402, "insufficient_credit"),
        (Refused("wallet", "w", free=-5), 402, "insufficient_credit"),
        (Refused("wallet", "w", free=40, held=60), 429, "credit_held"),
        (Refused("no_wallet", "w"), 402, "insufficient_credit"),
        (Refused("cap", "key:k", free=10, retry_after_ms=5_000), 402, "budget_exceeded"),
        (Refused("cap", "key:k", free=10, held=90), 429, "credit_held"),
        (Refused("rate", "rpm:k", retry_after_ms=1_500), 429, "rate_limit_exceeded"),
        (Refused("rate", "tpm:k", retry_after_ms=1), 429, "rate_limit_exceeded"),
        (Refused("slots", "k"), 429, "concurrency_limit_exceeded"),
    ],
)
def test_each_refusal_has_its_status_and_says_when_to_come_back(
    refused: Refused, status: int, code: str
) -> None:
    error = refusal(refused, NEEDED)

    assert (error.status_now, error.code) == (status, code)
    said = orjson.loads(errors.body(error))["error"]
    assert said["message"]
    if status == 429:
        assert int(error.headers["retry-after"]) >= 1
    else:
        assert error.headers["x-should-retry"] == "false"
        assert (said["needed_nanos"], said["affordable_nanos"]) == (100, max(0, refused.free))


def test_a_rate_says_how_long_to_wait_rounded_up() -> None:
    error = refusal(Refused("rate", "rpm:k", retry_after_ms=1_500), NEEDED)

    assert (error.headers["retry-after"], error.headers["retry-after-ms"]) == ("2", "1500")


def test_an_expired_key_and_a_suspended_organization_may_not_call() -> None:
    check_principal(PRINCIPAL, 1_000)
    with pytest.raises(errors.Unauthenticated):
        check_principal(PRINCIPAL._replace(expires_at_ms=1_000), 1_000)
    with pytest.raises(errors.Forbidden):
        check_principal(PRINCIPAL._replace(is_suspended=True), 1_000)


@pytest.mark.parametrize(
    ("limits", "output"),
    [
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20}, 20),
        ({"max_tokens": 10, "n": 8}, 80),
        ({}, 100_000),
        ({"max_tokens": 10**12}, 100_000),
    ],
)
async def test_the_hold_is_the_worst_case_of_what_is_forwarded(
    redis_url: str, vendor: Vendor, tmp_path: Path, limits: dict[str, int], output: int
) -> None:
    target = {"provider": "vendor", "model": "m"}
    changes = {"models": {"m": {"targets": [target], "max_output_tokens": 100_000}}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **limits}
    async with Gatehouse.opened(redis_url, vendor, tmp_path, changes=changes) as gate:
        status, _, _ = await gate.post(body)
        (record,) = await gate.records()

    assert status == 200
    # At most 0.75 tokens a byte of the body, each at most what writing it to a cache costs.
    input_nanos = record.held - output * 15_000
    assert 0 < input_nanos <= len(orjson.dumps(body)) * 3_750


async def test_no_answer_is_longer_than_what_prompt_and_answer_may_be_together(
    redis_url: str, vendor: Vendor, tmp_path: Path
) -> None:
    target = {"provider": "vendor", "model": "m"}
    changes = {"models": {"m": {"targets": [target], "context_tokens": 4_096}}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    async with Gatehouse.opened(redis_url, vendor, tmp_path, changes=changes) as gate:
        await gate.post(body)
        (record,) = await gate.records()

    assert 4_096 * 15_000 < record.held < 4_200 * 15_000


@pytest.mark.parametrize("limit", [0, -1, 1.5, "10", True])
async def test_a_limit_that_is_no_number_of_tokens_is_refused(
    gate: Gatehouse, limit: object
) -> None:
    body = {"model": "m", "messages": [], "max_tokens": limit}

    status, _, answer = await gate.post(body)

    assert (status, orjson.loads(answer)["error"]["param"]) == (400, "max_tokens")

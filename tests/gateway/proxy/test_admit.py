"""What a call may cost at most, and what is said when it may not be."""

from math import ceil
from typing import Any

import orjson
import pytest

from gateway import errors
from gateway.principal import Budget, Period
from gateway.proxy.admit import check_principal, refusal
from gateway.proxy.calls import CLAMPED
from ledger.admission import Refused
from ledger.money import Nanos
from tests.gateway.principals import PRINCIPAL
from tests.gateway.proxy.gatehouse import Gatehouse, OpenGate, knows, request
from tests.gateway.proxy.small_holds import ASK, INPUT_NANOS, OUTPUT_NANOS, changed
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
    open_gate: OpenGate, limits: dict[str, int], output: int
) -> None:
    target = {"provider": "vendor", "model": "m"}
    changes = {"models": {"m": {"targets": [target], "max_output_tokens": 100_000}}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **limits}
    async with open_gate(changes=changes) as gate:
        status, _, _ = await gate.post(body)
        (record,) = await gate.records()

    assert status == 200
    # At most 0.75 tokens a byte of the body, each at most what writing it to a cache costs.
    input_nanos = record.held - output * 15_000
    assert 0 < input_nanos <= len(orjson.dumps(body)) * 3_750


async def test_no_answer_is_longer_than_what_prompt_and_answer_may_be_together(
    open_gate: OpenGate,
) -> None:
    target = {"provider": "vendor", "model": "m"}
    changes = {"models": {"m": {"targets": [target], "context_tokens": 4_096}}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    async with open_gate(changes=changes) as gate:
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


class TestClamping:
    CREDIT = 5_000_000

    @pytest.mark.parametrize("field", ["max_completion_tokens", "max_output_tokens"])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_client_without_a_limit_gets_the_one_its_wallet_can_pay(
        self, open_gate: OpenGate, vendor: Vendor, field: str, *, stream: bool
    ) -> None:
        model = await vendor.script("c", output_tokens=900, text=" t")
        path = "/v1/responses" if field == "max_output_tokens" else "/v1/chat/completions"
        ask: dict[str, Any] = {"model": model, "stream": stream}
        ask |= {"input": "x"} if field == "max_output_tokens" else {"messages": ASK["messages"]}
        changes = changed(reasoning=True)
        async with open_gate(changes=changes, credit=self.CREDIT) as gate:
            status, headers, _ = await gate.post(ask, path=path)
            wallet = await gate.settled()
            (record,) = await gate.records()

        (entry,) = await vendor.log()
        limit = int(headers["x-tollgate-max-output-tokens"])
        assert (status, orjson.loads(entry.body)[field]) == (200, limit)
        assert record.usage["output"] == limit
        assert self.CREDIT - OUTPUT_NANOS < record.held <= self.CREDIT  # not one token more
        assert record.flags == [CLAMPED]
        assert wallet["free"] == self.CREDIT - record.charge >= 0

    async def test_a_client_with_a_limit_of_its_own_is_told_what_it_can_afford(
        self, open_gate: OpenGate
    ) -> None:
        ask = {**ASK, "model": "m", "stream": False, "max_tokens": 600}
        async with open_gate(changes=changed(), credit=self.CREDIT) as gate:
            status, headers, body = await gate.post(ask)

        error = orjson.loads(body)["error"]
        assert (status, error["affordable_nanos"]) == (402, self.CREDIT)
        assert error["needed_nanos"] >= 600 * OUTPUT_NANOS
        assert headers["x-should-retry"] == "false"
        assert "x-tollgate-max-output-tokens" not in headers

    async def test_a_limit_too_small_to_be_of_use_is_refused_with_what_would_do(
        self, open_gate: OpenGate
    ) -> None:
        ask = {**ASK, "model": "m"}
        credit = 49 * OUTPUT_NANOS
        async with open_gate(changes=changed(), credit=credit) as gate:
            status, _, body = await gate.post(ask)

        error = orjson.loads(body)["error"]
        assert (status, error["affordable_nanos"]) == (402, credit)
        assert 50 * OUTPUT_NANOS < error["needed_nanos"] < 100 * OUTPUT_NANOS

    async def test_what_other_calls_hold_is_waited_for_and_not_clamped_away(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("h", hold_at=-1)
        ask = {**ASK, "model": model}
        credit = 3_200_000  # for one stream and most of another, more than what would be clamped to
        async with open_gate(changes=changed(), credit=credit) as gate:
            first = await gate.line()
            first.writer.write(request(ask))
            await vendor.held(1)
            status, headers, body = await gate.post(ask)
            await vendor.release()

        assert (status, orjson.loads(body)["error"]["code"]) == (429, "credit_held")
        assert int(headers["retry-after"]) >= 1

    async def test_a_budget_clamps_as_a_wallet_does_and_is_told_by_name_once_it_is_spent(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("c", input_tokens=10, output_tokens=900, text=" t")
        budget = Budget("key:k", Nanos(self.CREDIT), Period.DAILY)
        async with open_gate(
            changes=changed(reasoning=True), find=knows(PRINCIPAL._replace(budgets=(budget,)))
        ) as gate:
            _, first, _ = await gate.post({**ASK, "model": model})
            await gate.settled()
            status, headers, body = await gate.post({**ASK, "model": model})

        error = orjson.loads(body)["error"]
        assert 50 <= int(first["x-tollgate-max-output-tokens"]) < self.CREDIT / OUTPUT_NANOS
        assert (status, error["code"], error["budget"]) == (402, "budget_exceeded", "key:k")
        assert 0 < error["resets_in_s"] <= 86_400
        assert headers["x-should-retry"] == "false"

    async def test_an_embedding_has_no_output_to_clamp(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        ask = {"model": "m", "input": "x" * 100}
        overhead = 64  # as config.yaml has it for embeddings
        needed = (ceil(0.75 * len(orjson.dumps(ask))) + overhead) * INPUT_NANOS
        async with open_gate(changes=changed(), credit=needed - 1) as gate:
            status, headers, body = await gate.post(ask, path="/v1/embeddings")

        assert (status, orjson.loads(body)["error"]["needed_nanos"]) == (402, needed)
        assert "x-tollgate-max-output-tokens" not in headers
        assert await vendor.quiet() == []


DEFAULTED = PRINCIPAL._replace(default_model="small")


@pytest.mark.parametrize("said", [{}, {"model": None}, {"model": "default"}])
async def test_a_call_without_a_model_goes_to_the_keys_own(
    open_gate: OpenGate, vendor: Vendor, said: dict[str, Any]
) -> None:
    async with open_gate(find=knows(DEFAULTED)) as gate:
        status, _, _ = await gate.post({"messages": [], **said})
        (record,) = await gate.records()

    assert (status, record.model_requested, record.model_target) == (200, "small", "small")
    (asked,) = await vendor.quiet()
    assert asked.model == "small"


async def test_a_call_that_names_a_model_is_not_for_the_keys_own(open_gate: OpenGate) -> None:
    async with open_gate(find=knows(DEFAULTED)) as gate:
        await gate.post({"model": "large", "messages": []})
        (record,) = await gate.records()

    assert record.model_requested == "large"


async def test_a_default_is_no_way_round_the_keys_models(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    principal = DEFAULTED._replace(models=frozenset({"large"}))
    async with open_gate(find=knows(principal)) as gate:
        status, _, body = await gate.post({"messages": []})

    assert (status, orjson.loads(body)["error"]["code"]) == (403, "model_not_allowed")
    assert await vendor.log() == []


async def test_without_a_default_a_call_must_name_its_model(gate: Gatehouse) -> None:
    status, _, body = await gate.post({"messages": []})

    assert (status, orjson.loads(body)["error"]["param"]) == (400, "model")


BEHIND_ONE = {"limits": {"proxies": 1}}


@pytest.mark.parametrize(
    ("changes", "lines", "status"),
    [
        ({}, [], 403),
        ({}, ["X-Forwarded-For: 192.0.2.7"], 403),  # anybody may send it
        (BEHIND_ONE, ["X-Forwarded-For: 192.0.2.7"], 200),
        (BEHIND_ONE, ["X-Forwarded-For: 192.0.2.7, 203.0.113.9"], 403),
        (BEHIND_ONE, ["X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 203.0.113.9"], 403),
        (BEHIND_ONE, ["X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 192.0.2.7"], 200),
        (BEHIND_ONE, ["X-Forwarded-For: junk"], 403),
        (BEHIND_ONE, [], 403),
    ],
)
async def test_a_key_with_ranges_is_taken_from_within_them_only(
    open_gate: OpenGate,
    vendor: Vendor,
    changes: dict[str, Any],
    lines: list[str],
    status: int,
) -> None:
    principal = PRINCIPAL._replace(networks=(("192.0.2.0/24", "2001:db8::/32"),))
    async with open_gate(find=knows(principal), changes=changes) as gate:
        answered, _, body = await gate.post({"model": "m", "messages": []}, *lines)
        free = (await gate.settled())["free"]

    assert answered == status
    if status == 403:
        assert orjson.loads(body)["error"]["code"] == "address_not_allowed"
        assert (await vendor.log(), free) == ([], 10_000_000_000)


async def test_the_address_of_the_socket_is_what_counts_without_proxies(
    open_gate: OpenGate,
) -> None:
    principal = PRINCIPAL._replace(networks=(("127.0.0.0/8", "::1/128"),))
    async with open_gate(find=knows(principal)) as gate:
        assert (await gate.post({"model": "m", "messages": []}))[0] == 200

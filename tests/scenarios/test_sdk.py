"""The official OpenAI client, sync and async, pointed at Tollgate: every kind of answer arrives."""

from typing import Any

import pytest
from openai import APIError, APIStatusError

from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_nothing_recorded, owed
from tests.scenarios.sdk import KINDS, Kind, sdk
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.parametrize("kind", KINDS)]
ASK: list[Any] = [{"role": "user", "content": "hello"}]
TOOL = {"name": "lookup", "parameters": {"type": "object", "properties": {}}}
TOOLS: list[Any] = [{"type": "function", "function": TOOL}]
COSTS = 100 * 3000 + 7 * 15000  # of the script that most of these calls ask for


@pytest.fixture
async def model(vendor_apart: Vendor) -> str:
    """100 tokens in, 7 out, in 7 deltas."""
    return await vendor_apart.script("sdk", input_tokens=100, output_tokens=7, text=" t")


async def test_a_chat_answer_arrives_and_is_charged_exactly(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, kind: Kind
) -> None:
    model = await vendor_apart.script("plain", input_tokens=100, output_tokens=500)
    async with sdk(tollgate, key, kind) as client:
        raw = await client.call(
            lambda c: c.chat.completions.with_raw_response.create(model=model, messages=ASK)
        )

    assert raw.parse().usage.total_tokens == 600
    assert raw.headers["x-tollgate-charge-nanos"] == "7800000"
    assert raw.headers["x-tollgate-balance-nanos"] == str(10_000_000_000 - 7_800_000)
    (record,) = await assert_books(tollgate, key, records=1, charge=100 * 3000 + 500 * 15000)
    assert (record["outcome"], record["usage_source"]) == ("success", "reported")
    assert str(record["call_id"]) == raw.headers["x-request-id"]


async def test_a_chat_stream_arrives_delta_by_delta_without_usage_nobody_asked_for(
    tollgate: Deployment, key: Key, model: str, vendor_apart: Vendor, kind: Kind
) -> None:
    async with sdk(tollgate, key, kind) as client:
        chunks = await client.stream(
            lambda c: c.chat.completions.create(model=model, messages=ASK, stream=True)
        )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == " t" * 7
    assert all(chunk.usage is None for chunk in chunks)
    await assert_books(tollgate, key, records=1, charge=owed(await vendor_apart.quiet()))


async def test_a_stream_whose_money_is_used_up_ends_for_length_as_at_any_limit(
    tollgate: Deployment, vendor_apart: Vendor, kind: Kind
) -> None:
    model = await vendor_apart.script("long", output_tokens=6_000, text=" t", interval_s=0.0002)
    key = await tollgate.new_key(credit_usd="0.05")
    async with sdk(tollgate, key, kind) as client:
        chunks = await client.stream(
            lambda c: c.chat.completions.create(
                model=model, messages=ASK, stream=True, stream_options={"include_usage": True}
            )
        )

    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    shown = "".join(choice.delta.content or "" for choice in choices).count(" t")
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    assert chunks[-1].usage.completion_tokens == shown < 6_000
    (record,) = await assert_books(tollgate, key, records=1)
    assert (record["outcome"], record["output"]) == ("limited", shown)
    assert record["charge"] <= record["held"]
    print(f"B6 {kind}: of 6,000 tokens $0.05 paid for {shown}, ended by `length`, none overspent")


async def test_a_response_whose_money_is_used_up_is_incomplete(
    tollgate: Deployment, vendor_apart: Vendor, kind: Kind
) -> None:
    model = await vendor_apart.script("long", output_tokens=6_000, text=" t", interval_s=0.0002)
    key = await tollgate.new_key(credit_usd="0.05")
    async with sdk(tollgate, key, kind) as client:
        events = await client.stream(
            lambda c: c.responses.create(model=model, input="hello", stream=True)
        )

    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    (record,) = await assert_books(tollgate, key, records=1)
    assert record["output"] == events[-1].response.usage.output_tokens


async def test_a_chat_stream_ends_with_the_usage_if_that_is_asked_for(
    tollgate: Deployment, key: Key, model: str, kind: Kind
) -> None:
    async with sdk(tollgate, key, kind) as client:
        chunks = await client.stream(
            lambda c: c.chat.completions.create(
                model=model, messages=ASK, stream=True, stream_options={"include_usage": True}
            )
        )

    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 107
    await assert_books(tollgate, key, records=1, charge=COSTS)


async def test_tool_calls_arrive_whole_and_streamed(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, kind: Kind
) -> None:
    model = await vendor_apart.script("tools", output_tokens=9, deltas=2, tool_calls=2)
    async with sdk(tollgate, key, kind) as client:
        whole = await client.call(
            lambda c: c.chat.completions.create(model=model, messages=ASK, tools=TOOLS)
        )
        chunks = await client.stream(
            lambda c: c.chat.completions.create(model=model, messages=ASK, tools=TOOLS, stream=True)
        )

    assert whole.choices[0].finish_reason == "tool_calls"
    called = [call.function for call in whole.choices[0].message.tool_calls]
    streamed = [
        call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()
    ]
    for function in (*called, *streamed):
        assert (function.name, function.arguments) == ("lookup", '{"key":"value"}')
    assert (len(called), len(streamed)) == (2, 2)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    await assert_books(tollgate, key, records=2, charge=2 * (10 * 3000 + 9 * 15000))


async def test_embeddings_arrive_as_numbers_though_they_travel_as_base64(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, kind: Kind
) -> None:
    name = await vendor_apart.script("embed", input_tokens=500)
    async with sdk(tollgate, key, kind) as client:
        made = await client.call(
            lambda c: c.embeddings.create(model=f"small/{name}", input=["one", "two"])
        )

    assert made.data[1].embedding == [(n + 1) / 64 for n in range(8)]
    (entry,) = await vendor_apart.quiet()
    assert '"encoding_format":"base64"' in entry.body
    (record,) = await assert_books(tollgate, key, records=1, charge=1000 * 20)
    assert record["operation"] == "embeddings"


async def test_a_response_arrives_whole_and_streamed(
    tollgate: Deployment, key: Key, model: str, kind: Kind
) -> None:
    async with sdk(tollgate, key, kind) as client:
        whole = await client.call(lambda c: c.responses.create(model=model, input="hello"))
        events = await client.stream(
            lambda c: c.responses.create(model=model, input="hello", stream=True)
        )

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert whole.output_text == "".join(deltas) == " t" * 7
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.total_tokens == 107
    await assert_books(tollgate, key, records=2, charge=2 * COSTS)


async def test_a_legacy_completion_arrives_whole_and_streamed(
    tollgate: Deployment, key: Key, model: str, kind: Kind
) -> None:
    async with sdk(tollgate, key, kind) as client:
        whole = await client.call(lambda c: c.completions.create(model=model, prompt="hello"))
        chunks = await client.stream(
            lambda c: c.completions.create(model=model, prompt="hello", stream=True)
        )

    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) == " t" * 7
    await assert_books(tollgate, key, records=2, charge=2 * COSTS)


async def test_a_moderation_arrives_and_costs_nothing(
    tollgate: Deployment, key: Key, model: str, kind: Kind
) -> None:
    async with sdk(tollgate, key, kind) as client:
        made = await client.call(lambda c: c.moderations.create(model=model, input="hello"))

    assert made.results[0].flagged is False
    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert record["operation"] == "moderations"


async def test_models_are_those_of_the_configuration(
    tollgate: Deployment, key: Key, kind: Kind
) -> None:
    async with sdk(tollgate, key, kind) as client:
        listed = await client.stream(lambda c: c.models.list())
        found = await client.call(lambda c: c.models.retrieve("cancel/anything"))

    assert {model.id for model in listed} == {"gpt-4o-mini", "embed-only"}
    assert (found.id, found.owned_by) == ("cancel/anything", "cancel")
    await assert_nothing_recorded(tollgate, key)


async def test_a_chat_stream_that_breaks_raises_within_the_loop(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, kind: Kind
) -> None:
    model = await vendor_apart.script("broken", deltas=9, text=" abc", error_after=5)
    async with sdk(tollgate, key, kind) as client:
        with pytest.raises(APIError, match="The server had an error") as caught:
            await client.stream(
                lambda c: c.chat.completions.create(model=model, messages=ASK, stream=True)
            )

    assert not isinstance(caught.value, APIStatusError), "it had begun as a good one"
    (record,) = await assert_books(tollgate, key, records=1)
    assert (record["outcome"], record["output"]) == ("upstream_error", 5)


async def test_a_response_that_breaks_ends_with_the_vendors_own_error_event(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, kind: Kind
) -> None:
    model = await vendor_apart.script("broken", deltas=9, text=" abc", error_after=5)
    async with sdk(tollgate, key, kind) as client:
        events = await client.stream(
            lambda c: c.responses.create(model=model, input="hello", stream=True)
        )

    assert events[-1].type == "error"
    (record,) = await assert_books(tollgate, key, records=1)
    assert (record["outcome"], record["output"]) == ("upstream_error", 5)

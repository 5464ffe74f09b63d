"""The official OpenAI client, pointed at Tollgate, works: answers, streams and errors."""

from typing import Any

import pytest

from tests.scenarios.deployment import Deployment, Key
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
ASK: list[Any] = [{"role": "user", "content": "hello"}]


async def test_a_chat_answer_arrives_and_is_charged_exactly(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    model = await vendor_apart.script("plain", input_tokens=100, output_tokens=500)
    async with tollgate.openai(key) as client:
        raw = await client.chat.completions.with_raw_response.create(model=model, messages=ASK)

    assert raw.parse().usage is not None
    assert raw.headers["x-tollgate-charge-nanos"] == "7800000"
    (record,) = await tollgate.records(key.organization_id, count=1)
    assert (record["charge"], record["outcome"]) == (100 * 3000 + 500 * 15000, "success")
    assert str(record["call_id"]) == raw.headers["x-request-id"]
    assert await tollgate.wallet(key.organization_id) == 10_000_000_000 - 7_800_000


async def test_a_stream_arrives_delta_by_delta(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    model = await vendor_apart.script("stream", output_tokens=7, deltas=7, text=" t")
    async with tollgate.openai(key) as client:
        stream = await client.chat.completions.create(model=model, messages=ASK, stream=True)
        chunks = [chunk async for chunk in stream]

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == " t" * 7
    assert all(chunk.usage is None for chunk in chunks), "usage was not asked for"

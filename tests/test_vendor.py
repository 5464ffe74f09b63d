"""The scripted vendor does what its scripts say, and its log tells what it did."""

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from gateway.upstream import Answer, Deadlines, Upstream, UpstreamError
from providers.adapter import Secret, Target, UpstreamRequest
from tests.vendor import Vendor

DEADLINES = Deadlines(connect_s=10, first_byte_s=10, idle_s=10)


class Client:
    """The gateway's own upstream client, pointed at the vendor."""

    def __init__(self, vendor: Vendor) -> None:
        self.upstream = Upstream()
        self._target = Target(
            provider="vendor",
            model="m",
            scheme="http",
            host=vendor.host,
            port=vendor.port,
            path="/v1",
            api_key=Secret("sk-vendor"),
        )

    async def send(
        self, model: str, *, path: str = "/v1/chat/completions", **fields: Any
    ) -> Answer:
        """Send a call; gives the answer once its head is there."""
        body = json.dumps({"model": model, "messages": []} | fields).encode()
        headers = (("Authorization", "Bearer sk-vendor"), ("Content-Type", "application/json"))
        request = UpstreamRequest("POST", path, headers, body)
        return await self.upstream.send(request, self._target, deadlines=DEADLINES)

    async def call(self, model: str, **fields: Any) -> bytes:
        """Send a call and read all of its answer."""
        return await whole(await self.send(model, **fields))


async def whole(answer: Answer) -> bytes:
    """Read an answer to its end."""
    chunks = []
    while chunk := await answer.read():
        chunks.append(chunk)
    return b"".join(chunks)


def events(body: bytes) -> list[dict[str, Any]]:
    """The JSON events of a stream."""
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


def contents(body: bytes) -> list[str]:
    """The text deltas of a chat stream."""
    choices = [choice for event in events(body) for choice in event.get("choices", [])]
    return [text for choice in choices if (text := choice["delta"].get("content"))]


@pytest.fixture
async def client(vendor: Vendor) -> AsyncIterator[Client]:
    ours = Client(vendor)
    yield ours
    await ours.upstream.close()


# The dialect.


async def test_the_official_client_understands_every_kind_of_answer(vendor: Vendor) -> None:
    model = await vendor.script("sdk", input_tokens=7, output_tokens=3, reasoning_tokens=1)
    async with openai.AsyncOpenAI(base_url=vendor.url, api_key="sk-x", max_retries=0) as sdk:
        chat = await sdk.chat.completions.create(model=model, messages=[])
        assert chat.choices[0].message.content == " token token"
        assert chat.usage
        assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (7, 3)
        stream = await sdk.chat.completions.create(
            model=model, messages=[], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage
        assert chunks[-1].usage.total_tokens == 10
        assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == " token token"
        vectors = await sdk.embeddings.create(model=model, input=["a", "b"])
        assert [len(each.embedding) for each in vectors.data] == [8, 8]
        response = await sdk.responses.create(model=model, input="hello")
        assert response.output_text == " token token"
        streamed = await sdk.responses.create(model=model, input="hello", stream=True)
        kinds = [event.type async for event in streamed]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert kinds.count("response.output_text.delta") == 2
        assert (await sdk.moderations.create(input="hello")).results[0].flagged is False
        assert model in [each.id async for each in await sdk.models.list()]
        old = await sdk.completions.create(model=model, prompt="hello")
        assert old.choices[0].text == " token token"


async def test_errors_have_the_shape_that_makes_the_official_client_raise(vendor: Vendor) -> None:
    limited = await vendor.script("429", status=429, headers={"retry-after": "7"})
    broken = await vendor.script("500", status=500)
    first = await vendor.script("first", error_after=-1)
    async with openai.AsyncOpenAI(base_url=vendor.url, api_key="sk-x", max_retries=0) as sdk:
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat.completions.create(model=limited, messages=[])
        assert caught.value.response.headers["retry-after"] == "7"
        with pytest.raises(openai.InternalServerError):
            await sdk.chat.completions.create(model=broken, messages=[])
        stream = await sdk.chat.completions.create(model=first, messages=[], stream=True)
        with pytest.raises(openai.APIError):
            _ = [chunk async for chunk in stream]
    assert [entry.billed_input for entry in await vendor.log()] == [0, 0, 0]


async def test_a_stream_is_written_as_openai_writes_it(vendor: Vendor, client: Client) -> None:
    model = await vendor.script("s", output_tokens=1, model="gpt-4o-2024-08-06")
    body = await client.call(model, stream=True, stream_options={"include_usage": True})
    begin = (
        b'data: {"id":"chatcmpl-000000000000000000000001","object":"chat.completion.chunk",'
        b'"created":1754000000,"model":"gpt-4o-2024-08-06","service_tier":"default",'
        b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"role":"assistant",'
        b'"content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,'
    )
    assert body.startswith(begin)
    assert body.endswith(b"}}\n\ndata: [DONE]\n\n")
    assert [event["usage"] is None for event in events(body)] == [True, True, True, False]
    assert events(body)[-1]["choices"] == []


@pytest.mark.parametrize(
    ("usage", "asks", "where"),
    [
        ("asked", False, []),
        ("asked", True, [4]),
        ("always", False, [4]),
        ("never", True, []),
        ("last", False, [3]),
        ("every", False, [0, 1, 2, 3]),
    ],
)
async def test_usage_appears_where_the_script_says(
    vendor: Vendor, client: Client, *, usage: str, asks: bool, where: list[int]
) -> None:
    model = await vendor.script("s", output_tokens=2, usage=usage)
    body = await client.call(model, stream=True, stream_options={"include_usage": asks})
    assert [number for number, event in enumerate(events(body)) if event.get("usage")] == where


async def test_a_request_is_given_no_more_than_its_own_limit(
    vendor: Vendor, client: Client
) -> None:
    model = await vendor.script("s", output_tokens=50)
    answer = json.loads(await client.call(model, max_tokens=3, n=2))
    assert answer["usage"]["completion_tokens"] == 6
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
    assert (await vendor.log())[0].billed_output == 6


async def test_a_call_may_bring_its_own_script(vendor: Vendor, client: Client) -> None:
    model = await vendor.script("s", input_tokens=3, output_tokens=50)
    own = {"output_tokens": 4, "tool_calls": 2}
    answer = json.loads(await client.call(model, vendor_script=own))
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 4)
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 2


@pytest.mark.parametrize("terminal", ["completed", "incomplete", "failed", "none"])
async def test_a_responses_stream_ends_as_the_script_says(
    vendor: Vendor, client: Client, terminal: str
) -> None:
    model = await vendor.script("s", terminal=terminal)
    body = await client.call(model, path="/v1/responses", stream=True, input="x")
    last = events(body)[-1]["type"]
    assert last == ("response.output_item.done" if terminal == "none" else f"response.{terminal}")


async def test_embeddings_come_as_numbers_or_in_base64(vendor: Vendor, client: Client) -> None:
    model = await vendor.script("s", dimensions=2)
    path = "/v1/embeddings"
    numbers = json.loads(await client.call(model, path=path, input="x"))
    assert numbers["data"][0]["embedding"] == [1 / 64, 2 / 64]
    packed = json.loads(await client.call(model, path=path, input="x", encoding_format="base64"))
    assert len(base64.b64decode(packed["data"][0]["embedding"])) == 8


# Time and trouble.


async def test_a_held_answer_waits_for_its_release(vendor: Vendor, client: Client) -> None:
    model = await vendor.script("s", hold_at=2, output_tokens=4)
    answer = await client.send(model, stream=True)
    seen = b""
    while len(contents(seen)) < 2:
        seen += await answer.read()
    await vendor.held(1)
    assert len(contents(seen)) == 2
    assert await vendor.release() == 1
    assert len(contents(seen + await whole(answer))) == 4
    assert (await vendor.log())[0].completed


async def test_an_answer_held_before_its_head_has_sent_nothing(
    vendor: Vendor, client: Client
) -> None:
    model = await vendor.script("s", hold_at=-1)
    calls = [asyncio.ensure_future(client.call(model)) for _ in range(5)]
    await vendor.held(5)
    assert {entry.sent_bytes for entry in await vendor.log()} == {0}
    await vendor.release()
    await asyncio.gather(*calls)
    assert all(entry.completed for entry in await vendor.quiet())


@pytest.mark.parametrize(
    ("trouble", "phase"),
    [
        ({"close_before_head": True}, "head"),
        ({"reset_before_head": True}, "head"),
        ({"garbage": True}, "head"),
        ({"cut_after": 3}, "body"),
        ({"reset_after": 3}, "body"),
        ({"reset_after_bytes": 300}, "body"),
        ({"encoding": "corrupt"}, "body"),
    ],
)
async def test_trouble_reaches_the_client_where_the_script_says(
    vendor: Vendor, client: Client, trouble: dict[str, Any], phase: str
) -> None:
    model = await vendor.script("s", **trouble)
    for stream in (True, False):
        with pytest.raises(UpstreamError) as caught:
            await client.call(model, stream=stream)
        assert caught.value.phase == phase


@pytest.mark.parametrize("trouble", ["error_after", "eof_after", "cut_after", "reset_after"])
async def test_a_broken_stream_is_billed_for_what_it_had_generated(
    vendor: Vendor, client: Client, trouble: str
) -> None:
    fields = {"input_tokens": 11, "output_tokens": 60, "reasoning_tokens": 10, trouble: 20}
    model = await vendor.script("s", **fields)
    answer = await client.send(model, stream=True)
    seen = b""
    try:
        while chunk := await answer.read():
            seen += chunk
    except UpstreamError:
        assert trouble in ("cut_after", "reset_after")
    assert len(contents(seen)) == 20
    (entry,) = await vendor.log()
    assert (entry.deltas, entry.completed) == (20, False)
    assert (entry.billed_input, entry.billed_output, entry.billed_reasoning) == (11, 30, 10)


async def test_the_log_tells_when_a_client_left_and_what_it_owes(
    vendor: Vendor, client: Client
) -> None:
    model = await vendor.script("s", stall_after=2, output_tokens=100)
    answer = await client.send(model, stream=True)
    seen = b""
    while len(contents(seen)) < 2:
        seen += await answer.read()
    answer.abort()
    (entry,) = await vendor.quiet()
    assert entry.left_s is not None
    assert (entry.completed, entry.billed_output) == (False, 2)


async def test_pieces_come_at_their_interval(vendor: Vendor, client: Client) -> None:
    model = await vendor.script("s", head_s=0.05, first_s=0.05, interval_s=0.01, output_tokens=10)
    await client.call(model, stream=True)
    (entry,) = await vendor.log()
    assert entry.first_s is not None
    assert entry.ended_s is not None
    assert entry.first_s - entry.started_s >= 0.045
    assert entry.ended_s - entry.first_s >= 0.05 + 12 * 0.01 - 0.01


async def test_pieces_may_trickle_in_crumbs(vendor: Vendor, client: Client) -> None:
    model = await vendor.script("s", trickle_bytes=7, output_tokens=3)
    body = await client.call(model, stream=True)
    assert len(contents(body)) == 3
    assert (await vendor.log())[0].deltas == 3


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("stream", [True, False])
async def test_compressed_answers_say_the_same(
    vendor: Vendor, client: Client, *, encoding: str, stream: bool
) -> None:
    plain = await client.call(await vendor.script("plain"), stream=stream)
    packed = await client.call(await vendor.script("packed", encoding=encoding), stream=stream)
    assert len(packed) == len(plain.replace(b"script-plain", b"script-packed"))


async def test_a_recording_is_replayed_byte_for_byte_wherever_it_is_cut(
    vendor: Vendor, client: Client
) -> None:
    recording = "".join(f'data: {{"n":{number},"é":1}}\n\n' for number in range(50)).encode()
    for fields in ({}, {"cut_seed": 3}, {"cuts": [1, 2, 500]}, {"encoding": "gzip"}):
        model = await vendor.script("s", raw=recording, content_type="text/event-stream", **fields)
        answer = await client.send(model, stream=True)
        assert answer.content_type == "text/event-stream"
        assert await whole(answer) == recording


async def test_a_whole_answer_may_be_given_as_wire_bytes(vendor: Vendor, client: Client) -> None:
    packed = gzip.compress(b"{}")
    wire = b"HTTP/1.1 202 Odd\r\ncontent-encoding: gzip\r\n\r\n" + packed
    model = await vendor.script("s", raw_wire=wire)
    answer = await client.send(model)
    assert (answer.status, await whole(answer)) == (202, b"{}")


# The log.


async def test_the_log_holds_what_was_received(vendor: Vendor, client: Client) -> None:
    await client.call("gpt-4o-mini", user="someone")
    (entry,) = await vendor.log()
    assert (entry.method, entry.path, entry.model) == (
        "POST",
        "/v1/chat/completions",
        "gpt-4o-mini",
    )
    assert json.loads(entry.body)["user"] == "someone"
    assert entry.header("authorization") == "Bearer sk-vendor"
    assert (entry.billed_input, entry.billed_output, entry.status) == (10, 5, 200)
    state = await vendor.state()
    assert (state.requests, state.open, state.billed_input) == (1, 0, 10)


async def test_a_vendor_in_its_own_process_does_the_same_and_ends_with_us() -> None:
    with Vendor.apart("--script", '{"id":"s","output_tokens":2}') as vendor:
        client = Client(vendor)
        answer = json.loads(await client.call("script-s"))
        assert answer["usage"]["completion_tokens"] == 2
        assert len(await vendor.log()) == 1
        await client.upstream.close()

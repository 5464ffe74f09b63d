"""A real language model behind the gateway: what llama.cpp reports is what is charged, always."""

import asyncio
import os
import random
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from openai import APIStatusError, APITimeoutError, AsyncOpenAI

from gateway.demo_model import HOST, KEY_VARIABLE, NAME
from gateway.serve import reserve_port
from tests.scenarios.deployment import Deployment
from tests.scenarios.tee import Tee

pytestmark = pytest.mark.scenario
CALLS = 200
AT_ONCE = 8
TOPICS = ("rivers", "trains", "bread", "clocks", "bridges", "the moon", "salt", "Möbius strips")
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# Nano-USD per token, as `P1` of the deployment has them per million.
INPUT, CACHE_READ, OUTPUT = 3_000, 300, 15_000


class Tokens(NamedTuple):
    """A report, in disjoint counts."""

    fresh: int
    cached: int
    output: int

    @classmethod
    def reported(cls, usage: dict[str, Any]) -> "Tokens":
        """What llama.cpp said, in chat's words or in those of responses."""
        of_input, of_output = (
            ("prompt", "completion") if "prompt_tokens" in usage else ("input", "output")
        )
        cached = usage[f"{of_input}_tokens_details"]["cached_tokens"]
        return cls(usage[f"{of_input}_tokens"] - cached, cached, usage[f"{of_output}_tokens"])

    @property
    def charge(self) -> int:
        """Nano-USD."""
        return self.fresh * INPUT + self.cached * CACHE_READ + self.output * OUTPUT


class Outcome(NamedTuple):
    """One call as its client saw it."""

    kind: str
    call_id: str | None = None  # None: it left before it could know
    tokens: Tokens | None = None  # as far as the client was told
    status: int = 200


@asynccontextmanager
async def real_model(folder: Path, key: str) -> AsyncIterator[int]:
    """llama.cpp's server in a process of its own; its port."""
    with ExitStack() as stack:
        port = reserve_port(HOST, stack)
        log = stack.enter_context((folder / "model.log").open("wb"))
        # It ends when its standard input does.
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "gateway.demo_model", str(port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, KEY_VARIABLE: key},  # noqa: TID251 - a child's
            )
        )
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while not await _is_healthy(session, f"http://{HOST}:{port}/health"):
                assert process.poll() is None, (folder / "model.log").read_text()
                await asyncio.sleep(0.05)
        yield port


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.ok
    except aiohttp.ClientError:
        return False


class Callers:
    """Sends calls of every kind, and keeps what their clients saw."""

    def __init__(self, client: AsyncOpenAI, seed: int) -> None:
        self._client, self._random = client, random.Random(seed)  # noqa: S311 - a reproducible mix
        self.outcomes: list[Outcome] = []

    async def run(self, count: int) -> None:
        """So many calls, `AT_ONCE` at a time, every kind about as often."""
        kinds = [
            *(self._whole, self._stream, self._stream_untold, self._tools, self._completion),
            *(self._response, self._leave_in_stream, self._leave_waiting),
            *(self._too_long, self._bad_limit, self._other_model),
        ]
        todo = [kinds[number % len(kinds)] for number in range(count)]
        self._random.shuffle(todo)
        calls = iter(todo)

        async def caller() -> None:
            for call in calls:
                self.outcomes.append(await call())

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(caller())

    def _ask(self, **more: Any) -> dict[str, Any]:
        topic = self._random.choice(TOPICS)
        asked = {"role": "user", "content": f"Tell me about {topic}."}
        limit = self._random.randint(2, 7)
        return {"model": NAME, "messages": [asked], "max_tokens": limit, **more}

    async def _whole(self) -> Outcome:
        raw = await self._client.chat.completions.with_raw_response.create(**self._ask())
        return _seen("whole", raw)

    async def _tools(self) -> Outcome:
        # Its template knows no tools, so it never calls one; the call is metered all the same.
        ask = self._ask(tools=[WEATHER], tool_choice="required")
        raw = await self._client.chat.completions.with_raw_response.create(**ask)
        return _seen("tools offered", raw)

    async def _completion(self) -> Outcome:
        create = self._client.completions.with_raw_response.create
        raw = await create(model=NAME, prompt="Once upon a time", max_tokens=4)
        return _seen("completion", raw)

    async def _response(self) -> Outcome:
        create = self._client.responses.with_raw_response.create
        raw = await create(model=NAME, input="Say hello.", max_output_tokens=5)
        return _seen("response", raw)

    async def _stream(self) -> Outcome:
        raw = await self._client.chat.completions.with_raw_response.create(
            **self._ask(stream=True, stream_options={"include_usage": True})
        )
        chunks = [chunk async for chunk in raw.parse()]
        tokens = Tokens.reported(chunks[-1].usage.model_dump())
        return Outcome("stream", raw.headers["x-request-id"], tokens)

    async def _stream_untold(self) -> Outcome:
        raw = await self._client.chat.completions.with_raw_response.create(**self._ask(stream=True))
        chunks = [chunk async for chunk in raw.parse()]
        assert all(chunk.usage is None for chunk in chunks)
        return Outcome("stream without usage", raw.headers["x-request-id"])

    async def _leave_in_stream(self) -> Outcome:
        ask = self._ask(stream=True, max_tokens=12)
        raw = await self._client.chat.completions.with_raw_response.create(**ask)
        async with raw.parse() as stream:
            read = [await anext(aiter(stream)) for _ in range(3)]
        assert not any(chunk.choices[0].finish_reason for chunk in read)
        return Outcome("left in mid-stream", raw.headers["x-request-id"])

    async def _leave_waiting(self) -> Outcome:
        client = self._client.with_options(timeout=0.1)
        try:
            raw = await client.chat.completions.with_raw_response.create(**self._ask(max_tokens=12))
        except APITimeoutError:
            return Outcome("left while waiting")
        return _seen("left too late", raw)

    async def _too_long(self) -> Outcome:
        return await self._refused("too long a context", content="word " * 3_000)

    async def _bad_limit(self) -> Outcome:
        return await self._refused("a bad parameter", response_format={"type": "nonsense"})

    async def _other_model(self) -> Outcome:
        return await self._refused("not its model", model="gpt-0")

    async def _refused(self, kind: str, *, content: str = "hello", **more: Any) -> Outcome:
        ask = self._ask(**more)
        ask["messages"] = [{"role": "user", "content": content}]
        with pytest.raises(APIStatusError) as refused:
            await self._client.chat.completions.create(**ask)
        return Outcome(kind, status=refused.value.status_code)


def _seen(kind: str, raw: Any) -> Outcome:
    tokens = Tokens.reported(raw.parse().usage.model_dump())
    return Outcome(kind, raw.headers["x-request-id"], tokens)


async def test_200_mixed_calls_are_charged_exactly_what_llama_cpp_reported(folder: Path) -> None:
    vendor_key = secrets.token_hex(16)
    provider = {"kind": "custom", "quirks": "llamacpp", "api_key": vendor_key}
    async with (
        real_model(folder, vendor_key) as port,
        Tee.to(port) as tee,
        Deployment.started(
            folder, vendor_port=tee.port, changes={"providers": {"vendor": provider}}
        ) as tollgate,
    ):
        key = await tollgate.new_key(models=(NAME,))
        async with tollgate.openai(key) as client:
            callers = Callers(client, seed=7)
            await callers.run(CALLS)
        kinds = Counter(outcome.kind for outcome in callers.outcomes)
        sent = sum(count for kind, count in kinds.items() if kind != "not its model")
        rows = await tollgate.records(key.organization_id, count=sent, within_s=60)
        wallet = await tollgate.wallet(key.organization_id)
        verified = tollgate.run("verify")

    by_id = {str(row["call_id"]): row for row in rows}
    settled = [row for row in rows if row["kind"] == "settled"]
    reported = sorted(Tokens.reported(usage) for usage in tee.reported())
    assert sorted(_tokens(row) for row in settled) == reported
    assert {row["usage_source"] for row in settled} == {"reported"}
    assert [dict(row) for row in rows if row["charge"] != _tokens(row).charge] == []
    for outcome in callers.outcomes:
        if outcome.tokens is not None and outcome.call_id is not None:
            assert _tokens(by_id[outcome.call_id]) == outcome.tokens, outcome
    total = sum(tokens.charge for tokens in reported)
    assert wallet == 10_000_000_000 - total
    assert "No difference." in verified
    assert Counter(outcome.status for outcome in callers.outcomes if outcome.status != 200) == {
        400: kinds["a bad parameter"] + kinds["too long a context"],
        403: kinds["not its model"],
    }
    figures = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    print(f"{len(rows)} records, {len(reported)} reports, {total} nano-USD, equal. {figures}")


def _tokens(row: Any) -> Tokens:
    return Tokens(row["input"], row["cache_read"], row["output"])

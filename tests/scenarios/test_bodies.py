"""A request's body may be odd or huge: it is metered or refused, and never held twice in memory."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
import pytest

from tests.scenarios.caller import (
    CHAT,
    PATIENCE_S,
    RESPONSES,
    Answer,
    asks,
    caller,
    post,
    request,
)
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_nothing_recorded, owed
from tests.scenarios.measured import Peaks
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
BODIES = 1000
CALLERS = 8
MIB = 1024**2
UPLOADS = 50 if LONG else 8
UPLOAD_BYTES = 20 * MIB
COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"


class Odd(NamedTuple):
    """A call with something in it that no specification names."""

    path: str
    body: bytes
    is_call: bool  # whether it can be taken as a call at all


# What a body may hold without ceasing to be a call: unknown fields, unknown words, nulls.
_UNKNOWN: list[dict[str, Any]] = [
    {"reasoning_effort": "max"},
    {"reasoning": {"effort": "colossal", "mode": "pro", "summary": None}},
    {"service_tier": "express"},
    {"verbosity": 11},
    {"modalities": ["smell"]},
    {"response_format": {"type": "haiku", "strict": None}},
    {"text": {"format": {"type": "haiku"}}},
    {"tool_choice": {"type": "whatever"}},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": None}, "x": 1}]},
    {"metadata": {"k": None, "n": 1.5e300}},
    {"logit_bias": {"50256": -100.0}},
    {"stop": [None]},
    {"seed": -(2**63)},
    {"temperature": 1e-320},
    {"provider": {"order": ["a"], "allow_fallbacks": False}},
    {"x_" + "n" * 200: "long name"},
    {"\u00fcnknown": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
    {"deep": [[[[[[[[[[{"a": [{}]}]]]]]]]]]]},
    {"big": 10**30},
    {"": ""},
]
_NULLS = ("stream", "stream_options", "n", "max_tokens", "temperature", "user", "tools", "stop")

# What makes it no call.
_BROKEN: list[dict[str, Any]] = [
    {"stream": "yes"},
    {"stream": 1},
    {"n": 0},
    {"max_tokens": "7", "max_output_tokens": "7", "model": 7},
    {"model": None},
    {"model": ""},
    {"model": ["gpt"]},
    {"base_url": "http://evil.test"},
    {"user": {"id": 1}},
]


def odd_bodies(model: str) -> Iterator[Odd]:
    """Ever new ones, the same ones every time."""
    chosen = random.Random(11)  # noqa: S311 - forms, not secrets
    while True:
        path = chosen.choice([CHAT, CHAT, CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS])
        tree = asks(path, model)
        if path != EMBEDDINGS:
            tree["stream"] = chosen.random() < 0.5
        for extra in chosen.sample(_UNKNOWN, chosen.randrange(1, 5)):
            tree |= extra
        for name in chosen.sample(_NULLS, chosen.randrange(3)):
            tree[name] = None
        is_call = chosen.random() < 0.9
        if not is_call:
            allowed = _BROKEN if path in (CHAT, COMPLETIONS) else _BROKEN[3:]
            tree |= chosen.choice(allowed)
        fields = list(tree.items())
        chosen.shuffle(fields)
        yield Odd(path, _written(chosen, fields), is_call)


def _written(chosen: random.Random, fields: list[tuple[str, Any]]) -> bytes:
    """The fields as JSON: spaced anyhow, names escaped, an earlier value given for one of them."""
    gap = chosen.choice(["", " ", "\n\t", "\r\n"])
    texts = [f"{_name(chosen, name)}{gap}:{gap}{_value(value)}" for name, value in fields]
    if chosen.random() < 0.2:
        texts.insert(0, f'"{fields[-1][0]}":{{"an":"earlier one"}}')
    return (gap + "{" + gap + f"{gap},".join(texts) + gap + "}" + gap).encode()


def _name(chosen: random.Random, name: str) -> str:
    if name and chosen.random() < 0.1:
        return f'"\\u{ord(name[0]):04x}{name[1:]}"'
    return orjson.dumps(name).decode()


def _value(value: Any) -> str:
    return (
        str(value)
        if isinstance(value, int) and abs(value) > 2**63
        else orjson.dumps(value).decode()
    )


async def test_an_odd_body_is_metered_exactly_or_refused_before_the_vendor(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="100000")
    model = await vendor_apart.script("odd", input_tokens=100, output_tokens=7)
    bodies = [odd for odd, _ in zip(odd_bodies(model), range(BODIES), strict=False)]
    waiting = iter(bodies)

    async def work() -> None:
        async with caller(tollgate) as line:
            for odd in waiting:
                answer = await line.post(odd.path, key.secret, odd.body)
                assert answer.status == (200 if odd.is_call else 400), (odd, answer)

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(work())

    calls = sum(odd.is_call for odd in bodies)
    entries = await vendor_apart.quiet()
    records = await assert_books(tollgate, key, records=calls, charge=owed(entries))
    assert {(row["usage_source"], row["outcome"]) for row in records} == {("reported", "success")}
    billed = sorted((entry.billed_input, entry.billed_output) for entry in entries)
    assert sorted((row["input"], row["output"]) for row in records) == billed
    refused = BODIES - calls
    print(f"A7 bodies: {BODIES} odd ones, {calls} metered exactly, {refused} refused, 0 silent")


async def test_a_body_over_the_limit_is_refused_by_its_length_alone(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    async with caller(tollgate) as line:
        claimed = {"Content-Length": str(50 * MIB)}
        await line.send(request(CHAT, key.secret, b"", headers=claimed))
        answer = await line.answer()

    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert await vendor_apart.log() == []
    await assert_nothing_recorded(tollgate, key)
    print("D8 declared: 50 MiB refused with 413 before a byte of it was read")


async def test_a_body_without_length_is_refused_once_it_is_over_the_limit(
    tollgate: Deployment, key: Key
) -> None:
    chunk = b"%x\r\n%b\r\n" % (MIB, b" " * MIB)
    headers = {"Transfer-Encoding": "chunked"}
    head = request(CHAT, key.secret, b"", headers=headers).replace(b"Content-Length: 0\r\n", b"")
    peaks = Peaks(tollgate.pids("worker"))

    async with caller(tollgate) as line:
        await line.send(head)
        for _ in range(50):
            await line.send(chunk)
        answer = await line.answer()

    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    await assert_nothing_recorded(tollgate, key)
    grown = max(peaks.grown())
    assert grown <= 2 * 32 * MIB
    print(f"D8 chunked: 413 beyond 32 MiB of 50, a worker grew by {grown // MIB} MiB")


async def uploaded(tollgate: Deployment, key: Key, body: bytes) -> Answer:
    """The answer to a large call; asked again, as the official clients do, when told to wait."""
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await post(tollgate, key, CHAT, body)).status == 503:
            await asyncio.sleep(float(answer.headers["retry-after"]))
    return answer


async def test_large_bodies_take_no_more_than_twice_their_size(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd=str(100 * UPLOADS))  # a bound on all that text is dear
    model = await vendor_apart.script("large", input_tokens=100, output_tokens=7)
    content = "x" * UPLOAD_BYTES
    body = orjson.dumps(asks(CHAT, model, messages=[{"role": "user", "content": content}]))
    peaks = Peaks(tollgate.pids("worker"))

    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(uploaded(tollgate, key, body), name="upload") for _ in range(UPLOADS)
        ]

    assert {task.result().status for task in asked} == {200}
    grown = sum(peaks.grown())
    assert grown <= UPLOADS * (2 * UPLOAD_BYTES + 2 * MIB)
    entries = await vendor_apart.quiet()
    assert all(entry.body_bytes > UPLOAD_BYTES for entry in entries)
    await assert_books(tollgate, key, records=UPLOADS, charge=owed(entries))
    share = grown / (UPLOADS * UPLOAD_BYTES)
    print(f"D8 large: {UPLOADS} bodies of 20 MiB at once, workers grew by {share:.2f} x their size")

"""A stream passes as it came, whatever its form, and is metered whoever asked for its usage."""

import asyncio
import base64
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import orjson
import pytest

from tests.scenarios.caller import CHAT, Caller, asks, caller, post
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books
from tests.scenarios.page import page
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
VARIANTS = 200
SPLIT_AT_EVERY_BYTE = VARIANTS if LONG else 20
WATCHED_S_MAX = 10.0
CALLERS = 8
TEXT = " abc"
DONE = "[DONE]"

CLIENTS: dict[str, dict[str, Any]] = {
    "absent": {},
    "false": {"stream_options": {"include_usage": False}},
    "true": {"stream_options": {"include_usage": True}},
}
VENDORS = ("asked", "always", "never", "last")
_ID = re.compile(rb"\d{24}")


def only_tells_usage(event: bytes) -> bool:
    """The chunk that a client must ask for."""
    return b'"choices":[]' in event and b'"total_tokens"' in event


async def asked_directly(vendor: Vendor, model: str) -> bytes:
    """The stream as the vendor gives it to one who asks for the usage; without its ids."""
    async with Caller.at(vendor.host, vendor.port) as line:
        body = asks(CHAT, model, stream=True, stream_options={"include_usage": True})
        return _ID.sub(b"", (await line.post(CHAT, "", body)).body)


@pytest.mark.parametrize(("client", "says"), list(product(CLIENTS, VENDORS)))
async def test_usage_is_always_asked_and_shown_only_to_those_who_asked(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, *, client: str, says: str
) -> None:
    script = {"input_tokens": 100, "output_tokens": 7, "text": TEXT, "usage": says}
    model = await vendor_apart.script("matrix", **script)
    whole = await asked_directly(vendor_apart, model)
    await vendor_apart.forget()

    answer = await post(tollgate, key, CHAT, asks(CHAT, model, stream=True, **CLIENTS[client]))

    events = re.split(rb"(?<=\n\n)", whole)
    if client != "true":
        events = [event for event in events if not only_tells_usage(event)]
    assert _ID.sub(b"", answer.body) == b"".join(events)
    (entry,) = await vendor_apart.quiet()
    assert orjson.loads(entry.body)["stream_options"]["include_usage"] is True
    (record,) = await assert_books(tollgate, key, records=1)
    expected = ("estimated", 7) if says == "never" else ("reported", 7)
    assert (record["usage_source"], record["output"]) == expected
    assert record["charge"] == record["input"] * 3000 + 7 * 15000
    assert record["input"] == 100 or says == "never"
    print(f"A8 client {client}, vendor {says}: {record['usage_source']}, {record['charge']:,} nano")


class Variant(NamedTuple):
    """One odd but legal form of a stream, and what it reports."""

    body: bytes
    output: int
    reports: bool


def variants(seed: int) -> Iterator[Variant]:
    """Streams in ever new forms, the same ones for the same seed."""
    chosen = random.Random(seed)  # noqa: S311 - forms, not secrets
    while True:
        output = chosen.randrange(1, 30)
        reports = chosen.random() < 0.9
        trees = list(_chunks(chosen, output, reports=reports))
        yield Variant(_framed(chosen, trees), output, reports)


def _chunks(chosen: random.Random, output: int, *, reports: bool) -> Iterator[dict[str, Any]]:
    """A chat of `output` deltas, each of them a token."""
    nulls = chosen.random() < 0.5
    usage = {"prompt_tokens": 100, "completion_tokens": output, "total_tokens": 100 + output}
    where = chosen.choice(["alone", "finish", "empty delta", "every", "groq"]) if reports else ""
    for number in range(output):
        chunk = _chunk({"content": chosen.choice([TEXT, " né", "\u4e2d", "\U0001f600"])})
        if where == "every":
            done = {"completion_tokens": number + 1, "total_tokens": 101 + number}
            chunk["usage"] = {**usage, **done}
        elif nulls:
            chunk["usage"] = None
        yield chunk
    finish = _chunk({}, finish="stop")
    if where in ("finish", "every"):
        finish["usage"] = usage
    elif where == "groq":
        finish["x_groq"] = {"id": "req_1", "usage": usage}
    yield finish
    if where == "empty delta":
        yield {**_chunk({}), "usage": usage}
    elif where == "alone":
        yield {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage}
    if chosen.random() < 0.2:
        yield {"id": "chatcmpl-1", "choices": [], "moderation": {"flagged": False}}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


def _framed(chosen: random.Random, trees: list[dict[str, Any]]) -> bytes:
    """The events as bytes: any line end, comments, names, and data in several lines."""
    line_end = chosen.choice(["\n", "\n", "\r\n", "\r"])
    space = chosen.choice(["", " "])
    lines: list[str] = []
    for tree in trees:
        lines += chosen.choice([[], [], [": keep-alive", ""], [": ping"], ["event: chunk"]])
        lines += chosen.choice([[], [], ["id: 7"], ["retry: 100"], ["unknown: field"]])
        pretty = orjson.OPT_INDENT_2 if chosen.random() < 0.1 else 0
        text = orjson.dumps(tree, option=pretty).decode()
        lines += [f"data:{space}{line}" for line in text.split("\n")]
        lines.append("")
    if chosen.random() < 0.8:
        lines += [f"data:{space}{DONE}", ""]
    mark = chosen.choice(["", "", "", "\ufeff"])
    # The last event may lack its blank line; it is an event all the same.
    ends = line_end if chosen.random() < 0.8 else ""
    return (mark + line_end.join(lines) + ends).encode()


async def until_missing_usage_is_counted(tollgate: Deployment, at_least: float) -> None:
    """Wait until the metric of answers without a report has come so far."""
    async with asyncio.timeout(WATCHED_S_MAX):
        while await missing_usage(tollgate) < at_least:
            await asyncio.sleep(0.05)


async def missing_usage(tollgate: Deployment) -> float:
    """Answers of the vendor that reported no usage, by the metrics page."""
    return (await page(tollgate)).sum("usage_missing_total", provider="vendor")


async def test_a_stream_of_any_form_is_metered_and_passes_unchanged(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="1000")
    forms = [form for form, _ in zip(variants(seed=7), range(VARIANTS), strict=False)]
    for number, form in enumerate(forms):
        every = {"cuts": [*range(1, len(form.body))]}
        cut = every if number < SPLIT_AT_EVERY_BYTE else {"cut_seed": number}
        raw = base64.b64encode(form.body).decode()
        await vendor_apart.script(
            f"form-{number}", raw=raw, content_type="text/event-stream", **cut
        )
    missing_before = await missing_usage(tollgate)

    calls, made = iter(enumerate(forms)), dict[str, Variant]()

    async def work() -> None:
        async with caller(tollgate) as line:
            for number, form in calls:
                body = asks(CHAT, f"script-form-{number}", stream=True, **CLIENTS["true"])
                answer = await line.post(CHAT, key.secret, body)
                assert answer.body == form.body, number
                made[answer.headers["x-request-id"]] = form

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(work())

    sources: Counter[str] = Counter()
    for record in await assert_books(tollgate, key, records=VARIANTS):
        form = made[str(record["call_id"])]
        assert record["outcome"] == "success", form
        assert record["usage_source"] == ("reported" if form.reports else "estimated"), form
        assert not form.reports or (record["input"], record["output"]) == (100, form.output), form
        assert record["output"] >= form.output
        sources[record["usage_source"]] += 1
    await until_missing_usage_is_counted(tollgate, missing_before + sources["estimated"])
    print(
        f"A7 streams: {VARIANTS} forms, {SPLIT_AT_EVERY_BYTE} of them split at every byte,"
        f" {sources['reported']} exact, {sources['estimated']} without a report estimated and"
        " counted, 0 silent"
    )

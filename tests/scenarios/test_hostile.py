"""What clients and vendors send to mislead us: others' names, odd headers, broken HTTP and JSON."""

import json
import time
from collections import Counter
from typing import Any, NamedTuple

import pytest

from tests.scenarios.caller import CHAT, RESPONSES, Answer, asks, caller, post, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_nothing_recorded
from tests.scenarios.vendors import API_KEY
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario

# All that a vendor is ever told in headers.
ALLOWED = {
    "host",
    "authorization",
    "content-type",
    "content-length",
    "accept",
    "accept-encoding",
    "connection",
    "x-tollgate-hop",
}
# All that a client is ever told in headers, besides these beginnings.
SHOWN = {
    "date",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "cache-control",
    "x-accel-buffering",
    "x-request-id",
    "openai-processing-ms",
    "openai-version",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
}
SHOWN_FAMILIES = ("x-tollgate-", "x-ratelimit-")


async def test_nobody_is_charged_for_what_another_says_of_himself(
    tollgate: Deployment, key: Key
) -> None:
    other = await tollgate.new_key()
    headers = {
        "X-Org-Id": other.organization_id,
        "X-Organization-Id": other.organization_id,
        "X-User-Id": "admin",
        "X-Tollgate-Organization": other.organization_id,
        "X-Tollgate-Key-Id": other.id,
        "X-Litellm-Customer-Id": other.organization_id,
        "OpenAI-Organization": other.organization_id,
        "OpenAI-Project": other.id,
        "X-Forwarded-User": "admin",
        "X-Api-Key": other.secret,
    }
    fields: dict[str, Any] = {
        "user": other.organization_id,
        "safety_identifier": "u" * 100_000,
        "metadata": {"organization_id": other.organization_id, "key_id": other.id},
        "tags": [other.organization_id],
        "max_tokens": 5,
    }
    ask = asks(CHAT, "vendor/m", **fields)
    async with caller(tollgate) as line:
        await line.send(request(CHAT, key.secret, ask, headers=headers))
        assert (await line.answer()).status == 200
    (record,) = await assert_books(tollgate, key, records=1)
    assert str(record["organization_id"]) == key.organization_id
    assert str(record["key_id"]) == key.id
    told = [value for value in map(str, dict(record).values()) if len(value) > 300]
    assert told == [], "what a client calls himself is kept short"
    await assert_nothing_recorded(tollgate, other)
    print(f"F6: {len(headers)} headers and {len(fields) - 1} fields name another: ledger unchanged")


HOSTILE_HEADERS = {
    "X-Api-Key": "sk-client",
    "Api-Key": "sk-client",
    "X-Goog-Api-Key": "client",
    "Proxy-Authorization": "Basic Y2xpZW50",
    "Cookie": "session=client",
    "Connection": "keep-alive, X-Secret",
    "X-Secret": "client",
    "Keep-Alive": "timeout=999",
    "TE": "trailers",
    "Trailer": "X-Secret",
    "Upgrade": "websocket",
    "X-Forwarded-For": "10.0.0.1",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Real-IP": "10.0.0.1",
    "Forwarded": "for=10.0.0.1",
    "Via": "1.1 evil",
    "X-Original-URL": "/admin",
    "X-Rewrite-URL": "/admin",
    "X-HTTP-Method-Override": "DELETE",
    "X-Host": "evil.example",
    "X-Base-Url": "http://evil.example",
    "X-Portkey-Custom-Host": "http://evil.example",
    "OpenAI-Organization": "org-evil",
    "OpenAI-Project": "proj-evil",
    "OpenAI-Beta": "assistants=v2",
    "Anthropic-Version": "evil",
    "X-Stainless-Retry-Count": "3",
    "Referer": "http://evil.example",
    "User-Agent": "evil/1.0",
    "Idempotency-Key": "evil",
    "Accept-Encoding": "br, gzip",
    "Origin": "http://evil.example",
    "Range": "bytes=0-1",
}


async def test_headers_pass_by_an_allow_list_in_both_directions(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    scripts: dict[str, dict[str, Any]] = {
        "good": {},
        "refused": {"status": 400},
        "moved": {"status": 302, "headers": {"location": "http://127.0.0.1:1/"}},
        "failed": {"status": 500, "headers": {"x-internal": "secret", "www-authenticate": "x"}},
    }
    seen: set[str] = set()
    for name, fields in scripts.items():
        model = await vendor_apart.script(f"f7{name}", **fields)
        for is_stream in (False, True):
            ask = asks(CHAT, f"vendor/{model}", stream=is_stream, max_tokens=5)
            async with caller(tollgate) as line:
                await line.send(request(CHAT, key.secret, ask, headers=HOSTILE_HEADERS))
                answer = await line.answer()
            seen |= answer.headers.keys()
            assert answer.status == {"good": 200, "refused": 400}.get(name, 502)
    odd = {name for name in seen - SHOWN if not name.startswith(SHOWN_FAMILIES)}
    assert odd == set()
    entries = await vendor_apart.quiet()
    for entry in entries:
        assert {name.lower() for name, _ in entry.headers} <= ALLOWED
        assert len(entry.headers) == len({name.lower() for name, _ in entry.headers})
        assert entry.header("authorization") == f"Bearer {API_KEY}"
        assert entry.header("host") == f"127.0.0.1:{vendor_apart.port}"
        assert key.secret not in str(entry.headers)
    await assert_books(tollgate, key, records=8)
    print(
        f"F7: {len(HOSTILE_HEADERS)} hostile headers: in {len(entries)} requests the vendor saw"
        f" {len(ALLOWED)} names at most and our key; clients saw {len(seen)} names, all allowed"
    )


class Shape(NamedTuple):
    """A body made to hurt, and what it may be answered with."""

    body: bytes
    statuses: set[int]


def shapes() -> dict[str, Shape]:
    """Bodies that take long, recurse or contradict themselves."""
    start = b'{"model":"vendor/m","max_tokens":5,"messages":[{"role":"user","content":"x"}],'
    deep = 100_000
    keys = b",".join(b'"k%d":1' % number for number in range(1_000_000))
    return {
        "arrays 100,000 deep": Shape(start + b'"x":' + b"[" * deep + b"]" * deep + b"}", {400}),
        "objects 100,000 deep": Shape(
            start + b'"x":' + b'{"a":' * deep + b"1" + b"}" * deep + b"}", {400}
        ),
        "messages 100,000 deep": Shape(
            b'{"model":"vendor/m","messages":' + b"[" * deep + b"]" * deep + b"}", {400}
        ),
        "unclosed": Shape(start + b'"x":' + b"[" * deep, {400}),
        "1,000,000 keys": Shape(start + keys + b"}", {200, 400}),
        "1,000,000 messages": Shape(
            b'{"model":"vendor/m","max_tokens":5,"messages":[' + b"{}," * 999_999 + b"{}]}",
            {200, 400, 402},
        ),
        # Said twice: what is metered must be what is sent.
        "the model twice": Shape(start + b'"model":"free/m"}', {200, 400}),
        "the limit twice": Shape(start + b'"max_tokens":1000000}', {400, 402}),
        "stream twice": Shape(start + b'"stream":false,"stream":true}', {200, 400}),
        "NaN": Shape(start + b'"temperature":NaN}', {400}),
        "Infinity": Shape(start + b'"temperature":Infinity}', {400}),
        "-Infinity": Shape(start.replace(b":5", b":-Infinity") + b'"x":1}', {400}),
        "1e400": Shape(start.replace(b":5", b":1e400") + b'"x":1}', {400}),
        "a limit of 10^30": Shape(start.replace(b":5", b":1" + b"0" * 30) + b'"x":1}', {400}),
        "a limit below zero": Shape(start.replace(b":5", b":-5") + b'"x":1}', {400}),
        "a number of 1,000,000 digits": Shape(
            start + b'"x":' + b"9" * 1_000_000 + b"}", {200, 400}
        ),
        "n of 10^12": Shape(start + b'"n":1000000000000}', {400, 402}),
        "a lone surrogate": Shape(start + b'"x":"\\ud800"}', {200, 400}),
        "no UTF-8": Shape(start + b'"x":"\xff\xfe"}', {200, 400}),
        "a list": Shape(b"[" + start + b'"x":1}]', {400}),
        "nothing": Shape(b"", {400}),
        "a byte order mark": Shape(b"\xef\xbb\xbf" + start + b'"x":1}', {200, 400}),
        "trailing bytes": Shape(start + b'"x":1}{"model":"free/m"}', {400}),
    }


SHAPE_S_MAX = 5.0


async def test_a_body_made_to_hurt_is_answered_in_bounded_time(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    pids = tollgate.pids("worker")
    took_s: dict[str, float] = {}
    statuses: Counter[int] = Counter()
    for name, shape in shapes().items():
        began_s = time.monotonic()
        answer = await post(tollgate, key, CHAT, shape.body)
        took_s[name] = time.monotonic() - began_s
        statuses[answer.status] += 1
        assert answer.status in shape.statuses, (name, answer.body[:300])
        assert took_s[name] < SHAPE_S_MAX, name
    entries = await vendor_apart.quiet()
    assert len(entries) == statuses[200]
    assert tollgate.pids("worker") == pids, "no worker died of it"
    records = await assert_books(tollgate, key, records=statuses[200])
    metered = [(row["model_target"], row["stream"]) for row in records]
    assert sorted(metered) == sorted((entry.model, entry.stream) for entry in entries)
    slowest = max(took_s, key=lambda name: took_s[name])
    print(
        f"F10: {len(took_s)} hostile bodies: {dict(statuses)}; slowest {slowest!r} in"
        f" {1000 * took_s[slowest]:.0f} ms"
    )


# What stands in place of a count of tokens, as JSON. Of 100 + 5 tokens truly consumed.
TRULY = 100 * 3_000 + 5 * 15_000
GARBAGE = ("1e999", "-5", "1e308", '"12"', "null", "NaN", "true", "[]", "{}", "9223372036854775808")


def answer_with(usage: str) -> bytes:
    """A good answer but for its usage."""
    return (
        b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0'
        b',"message":{"role":"assistant","content":"some text here"},"finish_reason":"stop"}],'
        b'"usage":' + usage.encode() + b"}"
    )


def stream_with(usage: str) -> bytes:
    """The same as a stream."""
    piece = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    text = {"choices": [{"index": 0, "delta": {"content": "some text here"}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    last = json.dumps({**piece, "choices": []})[:-1] + f',"usage":{usage}}}'
    lines = [json.dumps({**piece, **text}), json.dumps({**piece, **end}), last, "[DONE]"]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def usages() -> list[str]:
    """Usage reports that make no sense."""
    found = ["null", "[]", '"x"', "5", "{}"]
    for value in GARBAGE:
        found.append(f'{{"prompt_tokens":{value},"completion_tokens":5,"total_tokens":105}}')
        found.append(f'{{"prompt_tokens":100,"completion_tokens":{value},"total_tokens":105}}')
        details = f'"prompt_tokens_details":{{"cached_tokens":{value}}}'
        found.append(f'{{"prompt_tokens":100,"completion_tokens":5,{details}}}')
        found.append(f'{{"prompt_tokens":{value},"completion_tokens":{value}}}')
    return found


async def test_a_usage_report_that_makes_no_sense_never_pays_back_and_is_flagged(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    count = 0
    for number, usage in enumerate(usages()):
        for is_stream in (False, True):
            body = stream_with(usage) if is_stream else answer_with(usage)
            media = "text/event-stream" if is_stream else "application/json"
            fields: dict[str, Any] = {"body": body.decode(), "content_type": media}
            model = await vendor_apart.script(f"g{number}{is_stream}", **fields)
            ask = asks(CHAT, f"vendor/{model}", stream=is_stream, max_tokens=50)
            answer: Answer = await post(tollgate, key, CHAT, ask)
            assert answer.status == 200, (usage, answer.body)
            count += 1
    records = await assert_books(tollgate, key, records=count)
    bound = max(row["held"] for row in records)
    assert all(0 < row["charge"] <= bound for row in records), "never negative, never absurd"
    odd = [row for row in records if row["usage_source"] == "estimated"]
    silent = [row for row in records if row["usage_source"] == "reported" and not row["flags"]]
    # What is odd about these changes no count: what is not said to be cached costs the full price.
    assert {row["charge"] for row in silent} == {TRULY}
    print(
        f"F10: {count} absurd usage reports: {len(odd)} estimated,"
        f" {count - len(odd) - len(silent)} flagged, {len(silent)} exact all the same;"
        " no charge below 0 or above the hold"
    )


async def test_a_gateway_that_calls_itself_is_told_so(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    for path in (CHAT, RESPONSES):
        async with caller(tollgate) as line:
            headers = {"X-Tollgate-Hop": "1"}
            await line.send(request(path, key.secret, asks(path, "vendor/m"), headers=headers))
            answer = await line.answer()
        assert (answer.status, answer.error["code"]) == (508, "loop_detected")
    assert await vendor_apart.quiet() == []
    await assert_nothing_recorded(tollgate, key)

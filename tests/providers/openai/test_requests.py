"""The vendor's request for a call."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from providers.adapter import Operation, Secret, Target, UpstreamRequest
from providers.custom import QUIRKS
from providers.openai.calls import read_call
from providers.openai.requests import upstream_request
from tests.providers.vendor_bytes import body, call, target

CHAT, COMPLETIONS, RESPONSES = Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES


def sent(raw: bytes, to: Target | None = None, operation: Operation = CHAT) -> UpstreamRequest:
    return upstream_request(read_call(operation, raw), to or target())


def fields(request: UpstreamRequest) -> dict[str, Any]:
    tree = json.loads(request.body)
    assert isinstance(tree, dict)
    return tree


def test_values_pass_byte_for_byte_and_the_model_is_the_targets() -> None:
    raw = (
        b'{ "messages" : [ {"role":"user", "content":"\\u00e9\\/ \xc3\xa9"} ],\n "model":"alias",'
        b'"temperature":0.700, "novelty":{"a":[1e2,-0,1.0E+5]}, "big":123456789012345678901 }'
    )

    request = sent(raw)

    assert request.body == (
        b'{"messages":[ {"role":"user", "content":"\\u00e9\\/ \xc3\xa9"} ],"model":"vendor-model",'
        b'"temperature":0.700,"novelty":{"a":[1e2,-0,1.0E+5]},"big":123456789012345678901}'
    )


def test_of_a_name_given_twice_one_is_sent() -> None:
    request = sent(b'{"model":"a","x":1,"model":"b","x":2,"mod\\u0065l":"c"}')

    assert request.body == b'{"model":"vendor-model","x":2}'


@pytest.mark.parametrize("operation", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_usage": True}, {"include_usage": True}),
        (
            {"include_obfuscation": False, "novelty": [1]},
            {"include_obfuscation": False, "novelty": [1], "include_usage": True},
        ),
    ],
)
def test_usage_is_always_asked_of_a_stream(operation: Operation, options: Any, asked: Any) -> None:
    given_options = {} if options is None else {"stream_options": options}

    assert (
        fields(sent(body(stream=True, **given_options), operation=operation))["stream_options"]
        == asked
    )


def test_null_stream_options_are_as_none() -> None:
    request = sent(body(stream=True, stream_options=None))

    assert fields(request)["stream_options"] == {"include_usage": True}


def test_usage_is_not_asked_where_nobody_would_understand() -> None:
    assert "stream_options" not in fields(sent(body(stream=False)))
    assert "stream_options" not in fields(sent(body(input="x", stream=True), operation=RESPONSES))
    assert "stream_options" not in fields(sent(body(input="x"), operation=Operation.EMBEDDINGS))
    kept = {"include_obfuscation": False}
    raw = body(input="x", stream=True, stream_options=kept)
    assert fields(sent(raw, operation=RESPONSES))["stream_options"] == kept


def test_a_vendor_that_refuses_stream_options_is_sent_none() -> None:
    raw = body(stream=True, stream_options={"include_usage": True})

    assert "stream_options" not in fields(sent(raw, target("mistral")))


@pytest.mark.parametrize(
    ("quirks", "given_limits", "limits"),
    [
        ("openai", {"max_tokens": 5}, {"max_tokens": 5}),
        ("openai", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        (
            "openai",
            {"max_tokens": 5, "max_completion_tokens": 9},
            {"max_tokens": 5, "max_completion_tokens": 5},
        ),
        (
            "openai",
            {"max_tokens": None, "max_completion_tokens": 9},
            {"max_tokens": None, "max_completion_tokens": 9},
        ),
        ("mistral", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("mistral", {"max_tokens": 9, "max_completion_tokens": 5}, {"max_tokens": 5}),
        ("mistral", {"max_tokens": 9}, {"max_tokens": 9}),
        ("openai", {}, {}),
    ],
)
def test_every_limit_sent_is_the_one_that_money_is_held_for(
    quirks: str, given_limits: dict[str, Any], limits: dict[str, Any]
) -> None:
    request = sent(body(**given_limits), target(quirks))

    assert {name: n for name, n in fields(request).items() if name != "model"} == limits


@pytest.mark.parametrize(
    ("operation", "quirks", "name"),
    [
        (CHAT, "openai", "max_completion_tokens"),
        (CHAT, "deepseek", "max_tokens"),
        (COMPLETIONS, "openai", "max_tokens"),
        (RESPONSES, "openai", "max_output_tokens"),
    ],
)
def test_a_limit_set_by_the_gateway_is_written_where_the_vendor_reads_it(
    operation: Operation, quirks: str, name: str
) -> None:
    limited = structs.replace(read_call(operation, body()), output_limit=77)

    assert fields(upstream_request(limited, target(quirks)))[name] == 77


@pytest.mark.parametrize(
    ("to", "path"),
    [
        (target(path="/v1"), "/v1/chat/completions"),
        (target(path=""), "/chat/completions"),
        (
            target("azure-deployments", path="/openai?api-version=2024-10-21", model="my gpt/4#?"),
            "/openai/deployments/my%20gpt%2F4%23%3F/chat/completions?api-version=2024-10-21",
        ),
        (
            target("azure", path="/models?api-version=2024-05-01-preview"),
            "/models/chat/completions?api-version=2024-05-01-preview",
        ),
        (target("azure", path="/openai/v1"), "/openai/v1/chat/completions"),
    ],
)
def test_the_path_is_the_targets_and_the_operations(to: Target, path: str) -> None:
    request = sent(body(), to)

    assert (request.method, request.path) == ("POST", path)


def test_the_key_stands_where_the_vendor_looks_for_it() -> None:
    assert ("authorization", "Bearer sk-vendor") in sent(body()).headers
    assert ("api-key", "sk-vendor") in sent(body(), target("azure")).headers
    assert {name for name, _ in sent(body(), target(api_key=Secret(""))).headers} == {
        "content-type",
        "accept",
    }


def test_fixed_headers_come_from_the_configuration_alone() -> None:
    request = sent(body(), target(headers={"openai-organization": Secret("org-1")}))

    assert ("openai-organization", "org-1") in request.headers


def test_what_requests_of_a_kind_share_is_made_once_for_each_target() -> None:
    to, other = target(), target(api_key=Secret("sk-other"), path="/v2")
    kinds = [
        (operation, streamed)
        for operation in (CHAT, COMPLETIONS, RESPONSES)
        for streamed in (True, False)
    ]

    first = [sent(body(stream=s), to, operation) for operation, s in kinds]
    again = [sent(body(stream=s, user="u"), to, operation) for operation, s in kinds]

    for (operation, streamed), one, two in zip(kinds, first, again, strict=True):
        assert one.headers is two.headers
        assert one.path == two.path == f"/v1/{operation}"
        accepted = "text/event-stream" if streamed else "application/json"
        assert dict(one.headers)["accept"] == accepted
    assert dict(sent(body(), other).headers)["authorization"] == "Bearer sk-other"
    assert sent(body(), other).path == "/v2/chat/completions"
    assert len(to.heads) == len(kinds)
    assert "sk-vendor" not in repr(to)
    changed = replace(to, api_key=Secret("sk-new"))
    assert dict(sent(body(), changed).headers)["authorization"] == "Bearer sk-new"
    assert changed != to


def test_a_stream_is_accepted_as_events() -> None:
    assert ("accept", "text/event-stream") in sent(body(stream=True)).headers
    assert ("accept", "application/json") in sent(body()).headers


@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name not in {"model", "stream", "user"}),
        st.recursive(
            st.none() | st.integers(-(2**63), 2**64) | st.text(),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=6,
    )
)
def test_every_field_nobody_knows_survives(novelties: dict[str, Any]) -> None:
    raw = json.dumps({**{f"x{name}": v for name, v in novelties.items()}, "model": "m"}).encode()

    assert fields(sent(raw)) == {**json.loads(raw), "model": "vendor-model"}


@pytest.mark.parametrize("quirks", QUIRKS)
def test_every_accent_makes_a_request(quirks: str) -> None:
    request = upstream_request(call(messages=[], max_completion_tokens=4), target(quirks))

    assert {"max_tokens", "max_completion_tokens"} & fields(request).keys()

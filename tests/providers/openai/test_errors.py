"""What vendors say when they fail, and how we say it."""

import json
from collections.abc import Callable

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.adapter import Failure, Operation
from providers.openai.errors import (
    MASK,
    MESSAGE_CHARACTERS_MAX,
    failure,
    failure_within,
    masked,
    rendered,
    stream_error,
)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (  # OpenAI, Groq, DeepSeek
            404,
            (
                '{"error":{"code":"model_not_found","message":"No such model.","param":"model",'
                '"type":"invalid_request_error"}}'
            ),
            ("No such model.", "invalid_request_error", "model_not_found", "model"),
        ),
        (  # Azure
            429,
            '{"error":{"code":"RateLimitReached","message":"Too fast.","details":"Too fast."}}',
            ("Too fast.", "rate_limit_error", "RateLimitReached", None),
        ),
        (  # OpenRouter, Perplexity
            400,
            '{"error":{"code":400,"message":"Bad."},"user_id":"user_x"}',
            ("Bad.", "invalid_request_error", "400", None),
        ),
        (  # llama.cpp
            400,
            '{"error":{"code":400,"message":"Too long.","n_ctx":512,"type":"exceed_context_size"}}',
            ("Too long.", "exceed_context_size", "400", None),
        ),
        (  # Ollama, Venice
            404,
            '{"error":"model not found"}',
            ("model not found", "not_found_error", None, None),
        ),
        (  # xAI
            400,
            '{"code":"invalid-argument","error":"Model not found: x"}',
            ("Model not found: x", "invalid_request_error", "invalid-argument", None),
        ),
        (  # Mistral, older vLLM
            400,
            '{"object":"error","message":"Bad.","type":"invalid_model","param":null,"code":"1500"}',
            ("Bad.", "invalid_model", "1500", None),
        ),
        (  # Mistral's validation
            422,
            (
                '{"object":"error","message":{"detail":[{"type":"extra_forbidden",'
                '"loc":["body","stream_options"],"msg":"Extra inputs"}]},"code":null}'
            ),
            ("Extra inputs", "invalid_request_error", None, None),
        ),
        (  # FastAPI
            422,
            '{"detail":[{"type":"missing","loc":["body","messages",0],"msg":"Field required"}]}',
            ("Field required", "missing", None, "messages.0"),
        ),
        (
            401,
            '{"detail":"Invalid API Key"}',
            ("Invalid API Key", "authentication_error", None, None),
        ),
        (  # Doubleword
            400,
            '{"code":400,"message":"Validation","type":"Bad Request"}',
            ("Validation", "Bad Request", "400", None),
        ),
        (403, '{"message":"Denied"}', ("Denied", "permission_error", None, None)),
        (  # DashScope
            400,
            '{"code":"InvalidParameter","message":"Bad.","request_id":"r"}',
            ("Bad.", "invalid_request_error", "InvalidParameter", None),
        ),
        (  # Gemini
            400,
            '[{"error":{"code":400,"message":"Bad.","status":"INVALID_ARGUMENT"}}]',
            ("Bad.", "invalid_request_error", "400", None),
        ),
        (  # Anthropic
            529,
            '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
            ("Overloaded", "overloaded_error", None, None),
        ),
        (502, "upstream connect error", ("upstream connect error", "server_error", None, None)),
        (500, '"text"', ("text", "server_error", None, None)),
    ],
)
def test_every_shape_of_error_is_read(
    status: int, body: str, expected: tuple[str, str, str | None, str | None]
) -> None:
    assert failure(status, body.encode()) == Failure(*expected, status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'{"error":{}}',
        b'{"error":7}',
        b'{"error":{"message":7}}',
        b'{"error":[[]]}',
        b"<html><body>nginx/1.2 at 10.0.0.7</body></html>",
        b"x" * 5_000,
        b"[" * 100_000,
        b'{"detail":' + b"[" * 500 + b"]" * 500 + b"}",
    ],
)
def test_what_says_nothing_is_told_by_its_status(body: bytes) -> None:
    told = failure(503, body)

    assert told.message == "The vendor answered with status 503"
    assert (told.type, told.status) == ("server_error", 503)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "404"}, 404),
        ({"code": 200}, 502),
        ({"code": "12345678901234567890"}, 502),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"type": "insufficient_quota"}, 429),
        ({"code": "invalid_api_key", "type": "invalid_request_error"}, 401),
        ({"type": "permission_error"}, 403),
        ({"code": "model_not_found", "type": "invalid_request_error"}, 404),
        ({"code": "context_length_exceeded"}, 400),
        ({"code": "content_filter"}, 400),
        ({"type": "overloaded_error"}, 503),
        ({"code": "request_timeout"}, 504),
        ({"type": "server_error"}, 502),
        ({}, 502),
        ("text", 502),
    ],
)
def test_an_error_within_an_answer_has_the_status_that_says_the_same(
    error: object, status: int
) -> None:
    assert failure_within({"error": error}).status == status


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcDEF123456",
        "sk-inval**************-key",
        "sk-invalidkey",
        "tg_live_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG_a1b2c3",
        "gsk_a1b2c3d4e5f6",
        "xai-a1b2c3d4e5f6",
        "pplx-a1b2c3d4e5f6",
        "AIzaSyA1234567890",
        "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
        "Bearer a1b2c3d4e5",
        "org-a1b2c3d4e5f6g7",
        "proj_a1b2c3d4e5f6g7",
    ],
)
def test_no_key_and_no_account_is_shown(secret: str) -> None:
    shown = masked(f"Wrong key: {secret}. Get one.")

    assert shown == f"Wrong key: {MASK}. Get one."
    body = json.dumps({"error": {"message": secret, "type": secret, "code": secret}}).encode()
    assert secret not in str(failure(401, body))
    assert secret not in str(failure(401, f"Wrong key {secret}".encode()))


def test_a_key_in_a_query_is_not_shown() -> None:
    assert masked("GET /v1?key=abcdef&x=1") == f"GET /v1?key={MASK}&x=1"


@pytest.mark.parametrize(
    "text",
    [
        "Unknown field user_location",
        "Unknown field max_completion_tokens in messages[0].content",
        "The model `claude-sonnet-4-5-20250929` does not exist",
        "The model `Qwen/Qwen3-235B-A22B-Instruct-2507-FP8` does not exist",
        "You must give a bearer token",
        "task-oriented key-value-store",
    ],
)
def test_names_of_fields_and_models_are_shown(text: str) -> None:
    assert masked(text) == text


def test_a_message_is_printable_and_not_endless() -> None:
    shown = masked("a\x00b\x1b[31m\r\nc" + "x" * 9_999)

    assert shown.startswith("a b [31m \nc")
    assert len(shown) == MESSAGE_CHARACTERS_MAX


@given(st.binary(max_size=300), st.integers(400, 599))
def test_any_body_of_an_error_is_read(body: bytes, status: int) -> None:
    assert failure(status, body).status == status


FAILURE = Failure("No capacity", "server_error", "busy", "model", 503)


def test_an_error_is_written_as_openai_writes_it() -> None:
    assert json.loads(rendered(FAILURE)) == {
        "error": {
            "message": "No capacity",
            "type": "server_error",
            "param": "model",
            "code": "busy",
        }
    }
    assert failure(503, rendered(FAILURE)) == FAILURE


class Answering(httpx2.BaseTransport):
    """Answers every request with the same stream."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content=self._stream, request=request)


def read_chat(client: openai.OpenAI) -> None:
    list(client.chat.completions.create(model="m", messages=[], stream=True))


def read_response(client: openai.OpenAI) -> None:
    list(client.responses.create(model="m", input="x", stream=True))


@pytest.mark.parametrize(
    ("operation", "read"),
    [(Operation.CHAT, read_chat), (Operation.RESPONSES, read_response)],
)
def test_the_official_client_raises_for_an_error_in_a_stream(
    operation: Operation, read: Callable[[openai.OpenAI], None]
) -> None:
    transport = Answering(stream_error(operation, FAILURE, sequence=4))
    http_client = httpx2.Client(transport=transport)
    client = openai.OpenAI(api_key="k", base_url="http://vendor", http_client=http_client)

    with client, pytest.raises(openai.APIError, match="No capacity") as caught:
        read(client)

    assert caught.value.code == "busy"

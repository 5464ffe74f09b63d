"""Reading a client's body."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.adapter import BadCall, Operation
from providers.openai.calls import LIMITS, LOOSE_BYTES_MAX, MEMBERS_MAX, read_call, text_bound
from providers.openai.content import IMAGE_TOKENS
from tests.providers.vendor_bytes import body

CHAT, COMPLETIONS, RESPONSES = Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES
MESSAGES = [{"role": "user", "content": "Say hello."}]


def refused(raw: bytes, operation: Operation = CHAT) -> BadCall:
    with pytest.raises(BadCall) as caught:
        read_call(operation, raw)
    return caught.value


def test_a_chat_call_is_read() -> None:
    raw = body(
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=64,
        n=2,
        service_tier="flex",
        user="u" * 200,
    )

    call = read_call(CHAT, raw)

    assert call.body is raw
    assert (call.operation, call.model, call.stream, call.usage_wanted) == (
        CHAT,
        "alias",
        True,
        True,
    )
    assert (call.output_limit, call.choices, call.service_tier) == (64, 2, "flex")
    assert call.user == "u" * 128
    assert (call.vendor_ids, call.tools) == ((), False)


def test_what_is_absent_or_null_is_not_set() -> None:
    for raw in (
        body(messages=MESSAGES),
        body(messages=MESSAGES, stream=None, n=None, max_tokens=None, user=None, tools=None),
    ):
        call = read_call(CHAT, raw)

        assert (call.stream, call.usage_wanted) == (False, False)
        assert (call.output_limit, call.choices) == (None, 1)
        assert (call.service_tier, call.user, call.tools) == (None, None, False)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[]",
        b"7",
        b'"text"',
        b"null",
        b'{"model": "m",}',
        b'{"model": "m"',
        b'{"model": NaN}',
        b'{"model": "m", "x": Infinity}',
        b'{"model": "m", "x": 01}',
        b'{"model": "m"} {}',
        b'{"\xff": 1, "model": "m"}',
        b'{"\\ud800": 1, "model": "m"}',
        b'\xef\xbb\xbf{"model": "m"}',
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    assert refused(raw).code == "invalid_json"


@pytest.mark.parametrize("deep", [b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000])
def test_a_body_nested_without_end_is_refused_in_bounded_time(deep: bytes) -> None:
    began = time.process_time()

    assert refused(b'{"model":"m","x":' + deep + b"}").code == "invalid_json"
    assert time.process_time() - began < 0.2


def test_a_million_fields_are_refused_in_bounded_time() -> None:
    many = b"{" + b",".join(b'"k%d":1' % i for i in range(1_000_000)) + b"}"
    began = time.process_time()

    assert refused(many).code == "too_many_fields"
    assert time.process_time() - began < 0.2


def test_more_fields_than_the_dialect_could_have_are_refused() -> None:
    assert refused(body(**{f"k{i}": 1 for i in range(MEMBERS_MAX)})).code == "too_many_fields"


def test_a_million_fields_inside_a_field_pass() -> None:
    inner = b"{" + b",".join(b'"k%d":1' % i for i in range(1_000_000)) + b"}"

    assert read_call(CHAT, b'{"model":"m","metadata":' + inner + b"}").model == "m"


@pytest.mark.parametrize(
    ("operation", "name", "element"),
    [
        (CHAT, "messages", b"{}"),
        (RESPONSES, "input", b"{}"),
        (RESPONSES, "tools", b"{}"),
        (COMPLETIONS, "prompt", b'""'),
        (COMPLETIONS, "prompt", b"[]"),
        (COMPLETIONS, "prompt", b"1"),
    ],
)
def test_a_list_without_end_is_refused_or_read_in_bounded_time(
    operation: Operation, name: str, element: bytes
) -> None:
    raw = b'{"model":"m","%b":[%b]}' % (name.encode(), b",".join([element] * 2_000_000))
    began = time.process_time()

    try:
        read_call(operation, raw)
    except BadCall as error:
        assert error.code == "too_many_elements"  # noqa: PT017 - a list of numbers is one prompt
    assert time.process_time() - began < 0.2


def test_large_messages_pass_and_a_large_unknown_field_does_not() -> None:
    large = "x" * (2 * LOOSE_BYTES_MAX)

    assert read_call(CHAT, body(messages=[{"role": "user", "content": large}])).input_bound
    assert refused(body(messages=MESSAGES, novelty=large)).code == "too_many_fields"


def test_of_a_name_given_twice_the_last_counts() -> None:
    raw = b'{"model":"cheap","max_tokens":1,"model":"dear","max_tokens":9}'

    call = read_call(CHAT, raw)

    assert (call.model, call.output_limit) == ("dear", 9)


@pytest.mark.parametrize("model", [None, "", 7, True, ["m"], "m" * 257, "a\nb", "a\x00b"])
def test_a_model_must_be_a_short_printable_text(model: Any) -> None:
    assert refused(json.dumps({"model": model}).encode()).param == "model"


def test_a_missing_model_is_told_as_missing() -> None:
    assert refused(b"{}").code == "missing_required_parameter"


@pytest.mark.parametrize(
    "name", ["api_base", "base_url", "custom_host", "azure_endpoint", "custom_llm_provider"]
)
def test_no_field_may_say_where_a_call_goes(name: str) -> None:
    assert refused(body(messages=MESSAGES, **{name: "http://evil.example"})).param == name


def test_a_host_field_written_with_escapes_is_refused_too() -> None:
    assert refused(b'{"model":"m","b\\u0061se_url":"http://evil.example"}').param == "base_url"


@pytest.mark.parametrize("value", ["-1", "0", "1.5", "1e400", '"12"', "true", "[]", "1e3", "12.0"])
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        (CHAT, "n"),
        (COMPLETIONS, "max_tokens"),
        (COMPLETIONS, "best_of"),
        (RESPONSES, "max_output_tokens"),
    ],
)
def test_a_limit_must_be_a_whole_number_above_zero(
    operation: Operation, name: str, value: str
) -> None:
    error = refused(f'{{"model":"m","{name}":{value}}}'.encode(), operation)

    assert error.param == name


def test_a_huge_limit_is_read_as_it_is() -> None:
    assert read_call(CHAT, body(max_tokens=10**12)).output_limit == 10**12


@pytest.mark.parametrize(
    ("operation", "fields", "limit"),
    [
        (CHAT, {"max_tokens": 9, "max_completion_tokens": 5}, 5),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 9}, 5),
        (CHAT, {"max_tokens": None, "max_completion_tokens": 9}, 9),
        (CHAT, {"max_output_tokens": 5}, None),
        (COMPLETIONS, {"max_tokens": 5}, 5),
        (COMPLETIONS, {"max_completion_tokens": 5}, None),
        (RESPONSES, {"max_output_tokens": 5, "max_tokens": 1}, 5),
        (Operation.EMBEDDINGS, {"max_tokens": 5}, None),
    ],
)
def test_the_least_of_the_limits_that_the_operation_knows_counts(
    operation: Operation, fields: dict[str, Any], limit: int | None
) -> None:
    assert read_call(operation, body(**fields)).output_limit == limit
    assert set(LIMITS[operation]) >= {n for n in fields if limit and fields[n] == limit}


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"prompt": "one"}, 1),
        ({"prompt": ["one"]}, 1),
        ({"prompt": ["one", "two", "three"], "n": 2}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": []}, 1),
        ({"prompt": [{}]}, 1),
        ({"prompt": "one", "n": 2, "best_of": 5}, 5),
    ],
)
def test_choices_multiply_the_output(fields: dict[str, Any], choices: int) -> None:
    assert read_call(COMPLETIONS, body(**fields)).choices == choices


def test_prompts_are_counted_however_far_apart_they_stand() -> None:
    raw = b'{"model":"m","prompt":[' + b" " * 9_999 + b'"one",\n"two"]}'

    assert read_call(COMPLETIONS, raw).choices == 2


def test_a_hostile_number_of_choices_is_refused() -> None:
    assert refused(body(n=10**9)).param == "n"
    assert refused(body(prompt="p", best_of=1025), COMPLETIONS).param == "best_of"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stream", "true"),
        ("stream", 1),
        ("user", 7),
        ("service_tier", ["flex"]),
        ("safety_identifier", {}),
    ],
)
def test_a_field_of_the_wrong_type_is_named(name: str, value: Any) -> None:
    assert refused(body(**{name: value})).param == name


@pytest.mark.parametrize("options", [7, "x", [], {"include_usage": "yes"}])
def test_stream_options_of_the_wrong_type_are_refused(options: Any) -> None:
    assert refused(body(stream=True, stream_options=options)).param == "stream_options"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": None}, False),
        ({"include_usage": False}, False),
        ({"include_usage": True, "include_obfuscation": False, "novelty": [1]}, True),
    ],
)
def test_usage_is_wanted_only_if_asked(options: Any, *, wanted: bool) -> None:
    assert read_call(CHAT, body(stream=True, stream_options=options)).usage_wanted is wanted
    assert not read_call(CHAT, body(stream=False, stream_options=options)).usage_wanted
    assert not read_call(RESPONSES, body(stream=True, stream_options=options)).usage_wanted


def test_embeddings_are_not_streamed() -> None:
    assert not read_call(Operation.EMBEDDINGS, body(input="x", stream=True)).stream


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"previous_response_id": "resp_1"}, ("previous_response_id",)),
        ({"previous_response_id": None}, ()),
        ({"conversation": {"id": "conv_1"}}, ("conversation",)),
        ({"prompt": {"id": "pmpt_1"}}, ("prompt",)),
        ({"background": True}, ("background",)),
        ({"background": False}, ()),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, ("item_reference",)),
        (
            {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
            ("vector_store_ids",),
        ),
        ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, ("container",)),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, ()),
        (
            {"tools": [{"type": "function", "parameters": {"properties": {"file_id": {}}}}]},
            (),
        ),
    ],
)
def test_things_kept_at_the_vendor_are_named(
    fields: dict[str, Any], names: tuple[str, ...]
) -> None:
    assert read_call(RESPONSES, body(**fields)).vendor_ids == names


def test_a_prompt_of_a_completion_is_no_id_and_a_deferred_chat_is_kept_at_the_vendor() -> None:
    assert read_call(COMPLETIONS, body(prompt="text")).vendor_ids == ()
    assert read_call(CHAT, body(messages=MESSAGES, deferred=True)).vendor_ids == ("deferred",)


@pytest.mark.parametrize(
    ("fields", "runs"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom"}]}, False),
        ({"tools": []}, False),
        ({"tools": [{"type": "web_search"}]}, True),
        ({"tools": [{"type": "mcp", "server_url": "https://x.example"}]}, True),
        ({"tools": [{"type": "a_novelty"}]}, True),
        ({"tools": "odd"}, True),
        ({"web_search_options": {}}, True),
        ({"plugins": [{"id": "web"}]}, True),
    ],
)
def test_tools_that_the_vendor_runs_are_told(fields: dict[str, Any], *, runs: bool) -> None:
    assert read_call(CHAT, body(messages=MESSAGES, **fields)).tools is runs


def test_an_unreadable_prompt_is_refused() -> None:
    assert refused(b'{"model":"m","messages":7}').param == "messages"


def test_the_bound_is_three_quarters_of_the_ascii_bytes_and_all_others() -> None:
    assert text_bound(b"x" * 100) == 75
    assert text_bound(b"x" * 101) == 76
    assert text_bound("é中".encode()) == 5
    assert text_bound(b"x" * 100 + "é".encode(), 40) == 47


def test_media_counts_by_the_table_and_not_by_its_bytes() -> None:
    url = "data:image/png;base64," + "A" * 1_000_000
    parts = [{"type": "image_url", "image_url": {"url": url}}]

    bound = read_call(CHAT, body(messages=[{"role": "user", "content": parts}])).input_bound

    assert IMAGE_TOKENS < bound < IMAGE_TOKENS + 200


@given(st.text(max_size=300), st.integers(0, 400))
def test_the_bound_is_never_below_what_the_rule_says(text: str, media: int) -> None:
    raw = text.encode()
    ascii_bytes = sum(byte < 128 for byte in raw)
    exact = 0.75 * max(0, ascii_bytes - media) + (len(raw) - ascii_bytes)

    assert exact <= text_bound(raw, media) < exact + 1


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name not in {"model", "messages"}),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=6,
        ),
        max_size=8,
    )
)
def test_any_body_is_read_or_refused(fields: dict[str, Any]) -> None:
    raw = json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode(
        "utf-8", "surrogatepass"
    )
    try:
        call = read_call(CHAT, raw)
    except BadCall:
        return
    assert call.model == "m"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for operation in Operation:
        try:
            read_call(operation, raw)
        except BadCall:
            continue

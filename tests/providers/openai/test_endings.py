"""How a client's stream ends at its limit."""

import json
from typing import Any

from ledger.usage import Usage
from providers.adapter import Operation
from providers.openai.endings import DONE, length_chunks, length_response
from providers.sse import SseReader

USAGE = Usage({"input": 10, "cache_read": 2, "output": 5})
LAST = b'{"id":"c1","created":7,"model":"m","choices":[{"index":0}],"usage":null}'


def trees(stream: bytes) -> list[dict[str, Any]]:
    reader = SseReader()
    events = [block.data for block in reader.feed(stream)]
    return [json.loads(data) for data in events if data and data != b"[DONE]"]


def test_every_open_choice_stops_for_length() -> None:
    stream = length_chunks(Operation.CHAT, LAST, [0, 2], None)
    (tree,) = trees(stream)

    assert stream.endswith(DONE)
    assert (tree["id"], tree["created"], tree["model"]) == ("c1", 7, "m")
    assert tree["choices"] == [
        {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}
        for index in (0, 2)
    ]


def test_a_legacy_completion_stops_with_an_empty_text() -> None:
    (tree,) = trees(length_chunks(Operation.COMPLETIONS, LAST, [0], None))

    assert tree["choices"][0]["text"] == ""
    assert "delta" not in tree["choices"][0]


def test_the_usage_follows_for_a_client_that_asked() -> None:
    _, tree = trees(length_chunks(Operation.CHAT, LAST, [0], USAGE))

    assert tree["choices"] == []
    assert tree["usage"] == {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


def test_where_every_choice_has_ended_only_done_is_said() -> None:
    assert length_chunks(Operation.CHAT, LAST, [], None) == DONE


def test_a_response_ends_as_incomplete() -> None:
    first = b'{"type":"response.created","response":{"id":"r1","model":"m","tools":[]}}'
    (tree,) = trees(length_response(first, USAGE, sequence=8))

    assert (tree["type"], tree["sequence_number"]) == ("response.incomplete", 8)
    assert tree["response"]["id"] == "r1"
    assert tree["response"]["status"] == "incomplete"
    assert tree["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_stream_of_which_nothing_could_be_read_still_ends() -> None:
    assert trees(length_chunks(Operation.CHAT, b"not json", [0], None))[0]["choices"]
    assert trees(length_response(b"\xff", USAGE, sequence=0))[0]["response"]["output"] == []

"""OpenAI's dialect as an adapter."""

import pytest

from ledger.usage import Source
from providers.adapter import Adapter
from providers.custom import QUIRKS
from providers.openai.dialect import OpenAI
from tests.providers.vendor_bytes import USAGE, answer, call, target, usage_chunk


def test_it_is_an_adapter() -> None:
    adapter: Adapter = OpenAI()

    assert adapter.request(call(), target()).path == "/v1/chat/completions"
    assert adapter.failure(404, b'{"error":"gone"}').message == "gone"


@pytest.mark.parametrize("quirks", QUIRKS)
def test_the_answers_own_type_decides_how_it_is_read_and_not_the_request(quirks: str) -> None:
    for streamed, raw in ((True, usage_chunk(USAGE)), (False, answer(USAGE))):
        for asked in (True, False):
            meter = OpenAI().meter(call(stream=asked), target(quirks), streamed=streamed, bound=99)
            meter.feed(raw)
            meter.end()

            assert meter.usage().source is Source.REPORTED
            assert meter.usage().input_tokens() == 12

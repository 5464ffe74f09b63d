"""The header lines of answers."""

from gateway import errors
from gateway.proxy.answer import refuse
from gateway.proxy.exchange import Answered, Exchange
from tests.gateway.principals import PRINCIPAL
from tests.gateway.proxy.door import Door, post
from tests.gateway.proxy.gatehouse import Gatehouse, OpenGate, knows
from tests.vendor import Vendor

ASK = {"model": "m", "messages": [], "max_tokens": 5}


async def test_a_limited_key_is_told_what_is_left(open_gate: OpenGate) -> None:
    principal = PRINCIPAL._replace(rpm=2, tpm=1_000_000)
    async with open_gate(find=knows(principal)) as gate:
        _, first, _ = await gate.post(ASK)
        await gate.post(ASK)
        status, headers, _ = await gate.post(ASK)

    assert first["x-ratelimit-limit-requests"] == "2"
    assert first["x-ratelimit-remaining-requests"] == "1"
    assert first["x-ratelimit-limit-tokens"] == "1000000"
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 60


async def test_of_the_vendors_headers_only_the_listed_pass(gate: Gatehouse, vendor: Vendor) -> None:
    theirs = {"openai-processing-ms": "12", "set-cookie": "a=b", "server": "x", "location": "/y"}
    model = await vendor.script("h", headers=theirs)

    _, headers, _ = await gate.post({**ASK, "model": model})

    assert headers["openai-processing-ms"] == "12"
    assert not {"set-cookie", "server", "location"} & headers.keys()


async def test_what_an_error_says_cannot_add_a_header() -> None:
    async def refusing(exchange: Exchange) -> Answered:
        error = errors.BadRequest("a\r\nX-Evil: 1", code="c", headers={"x-why": "fine"})
        return refuse(exchange, error, "id")

    async with Door.opened(refusing) as door:
        line = await door.line()
        status, headers, _ = await line.ask(post(b"{}"))

    assert (status, headers["x-why"]) == (400, "fine")
    assert "x-evil" not in headers

"""Which path reaches what: every way to a vendor is metered, everything else says what to do."""

import orjson
import pytest

from gateway.proxy.table import OPERATIONS
from providers.adapter import Operation
from tests.gateway.principals import PRINCIPAL
from tests.gateway.proxy.gatehouse import KEY, Gatehouse, OpenGate, knows, request
from tests.vendor import Vendor

AUTH = f"Authorization: Bearer {KEY}\r\n"


def asked(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: t", *lines, "", ""]).encode()


BODIES: dict[Operation, dict[str, object]] = {
    Operation.CHAT: {"messages": [{"role": "user", "content": "x"}]},
    Operation.COMPLETIONS: {"prompt": "x"},
    Operation.EMBEDDINGS: {"input": "x"},
    Operation.RESPONSES: {"input": "x"},
    Operation.MODERATIONS: {"input": "x"},
}


@pytest.mark.parametrize("path", sorted(OPERATIONS))
async def test_every_path_that_reaches_a_vendor_leaves_a_record(
    gate: Gatehouse, vendor: Vendor, path: str
) -> None:
    body = {"model": "m", **BODIES[OPERATIONS[path]]}

    status, _, _ = await gate.post(body, path=path)

    assert status == 200
    assert len(await vendor.quiet()) == 1
    (record,) = await gate.records()
    assert record.operation == OPERATIONS[path]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/files", 404, "unknown_url"),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),
        ("POST", "//v1/chat/completions", 404, "unknown_url"),
        ("POST", "/v1/../v1/chat/completions", 404, "unknown_url"),
        ("GET", "/v1/responses/resp_1", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/m", 405, "method_not_allowed"),
        ("GET", "/v1/models/no-such-thing", 401, "missing_api_key"),
    ],
)
async def test_every_other_path_says_what_to_do(
    gate: Gatehouse, vendor: Vendor, method: str, path: str, status: int, code: str
) -> None:
    line = await gate.line()

    answered, _, body = await line.ask(asked(method, path))

    assert (answered, orjson.loads(body)["error"]["code"]) == (status, code)
    assert await vendor.log() == []


async def test_a_path_with_a_query_is_the_same_path(gate: Gatehouse) -> None:
    body = {"model": "m", **BODIES[Operation.CHAT]}

    assert (await gate.post(body, path="/v1/chat/completions?beta=1"))[0] == 200


async def test_a_key_in_the_url_is_refused(gate: Gatehouse) -> None:
    line = await gate.line()

    status, _, body = await line.ask(asked("GET", f"/v1/models?api_key={KEY}"))

    assert (status, orjson.loads(body)["error"]["code"]) == (400, "api_key_in_url")


async def test_models_are_listed_as_the_key_may_use_them(open_gate: OpenGate) -> None:
    principal = PRINCIPAL._replace(models=frozenset({"free"}))
    async with open_gate(find=knows(principal)) as gate:
        line = await gate.line()

        _, _, listed = await line.ask(asked("GET", "/v1/models", AUTH.strip()))
        found, _, one = await line.ask(asked("GET", "/v1/models/free", AUTH.strip()))
        hidden, _, _ = await line.ask(asked("GET", "/v1/models/unpriced", AUTH.strip()))
        refused, _, body = await gate.post({"model": "m", **BODIES[Operation.CHAT]})

    assert [model["id"] for model in orjson.loads(listed)["data"]] == ["free"]
    assert (found, orjson.loads(one)["owned_by"]) == (200, "vendor")
    assert hidden == 404
    assert (refused, orjson.loads(body)["error"]["code"]) == (403, "model_not_allowed")


async def test_the_default_of_the_key_is_listed_and_marked(open_gate: OpenGate) -> None:
    principal = PRINCIPAL._replace(default_model="small", models=frozenset({"free", "small"}))
    async with open_gate(find=knows(principal)) as gate:
        line = await gate.line()

        _, _, listed = await line.ask(asked("GET", "/v1/models", AUTH.strip()))
        _, _, one = await line.ask(asked("GET", "/v1/models/default", AUTH.strip()))

    models = {model["id"]: model.get("default") for model in orjson.loads(listed)["data"]}
    assert models == {"free": None, "small": True}
    assert (orjson.loads(one)["id"], orjson.loads(one)["default"]) == ("small", True)


async def test_a_default_that_the_key_may_not_use_is_not_listed(open_gate: OpenGate) -> None:
    principal = PRINCIPAL._replace(default_model="small", models=frozenset({"free"}))
    async with open_gate(find=knows(principal)) as gate:
        line = await gate.line()

        _, _, listed = await line.ask(asked("GET", "/v1/models", AUTH.strip()))
        found, _, _ = await line.ask(asked("GET", "/v1/models/default", AUTH.strip()))

    assert [model["id"] for model in orjson.loads(listed)["data"]] == ["free"]
    assert found == 404


async def test_models_are_listed_to_nobody_outside_the_keys_ranges(open_gate: OpenGate) -> None:
    principal = PRINCIPAL._replace(networks=(("192.0.2.0/24",),))
    async with open_gate(find=knows(principal)) as gate:
        line = await gate.line()

        status, _, body = await line.ask(asked("GET", "/v1/models", AUTH.strip()))

    assert (status, orjson.loads(body)["error"]["code"]) == (403, "address_not_allowed")


async def test_health_needs_no_key(gate: Gatehouse) -> None:
    line = await gate.line()

    assert (await line.ask(asked("GET", "/healthz")))[0] == 200
    assert (await line.ask(asked("GET", "/readyz")))[0] == 200


async def test_http_that_other_servers_read_otherwise_is_not_read_here(
    gate: Gatehouse, vendor: Vendor
) -> None:
    line = await gate.line()
    body = request({"model": "m", **BODIES[Operation.CHAT]})
    old = body.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    chunked = old.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nX-Length", 1)

    status, headers, _ = await line.ask(chunked)

    assert (status, headers["connection"]) == (400, "close")
    assert await vendor.log() == []

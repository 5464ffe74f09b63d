"""Whatever reaches a vendor is metered; whatever cannot be metered cannot reach one."""

from itertools import product
from typing import Any

import pytest

from gateway.proxy.table import OPERATIONS
from providers.adapter import Operation
from tests.scenarios.caller import CHAT, asks, caller, post, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_nothing_recorded
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
METHODS = ("POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS")
# What 100 tokens in and 7 out cost by P1; moderation reports no tokens.
COSTS = {
    Operation.CHAT: 405_000,
    Operation.COMPLETIONS: 405_000,
    Operation.RESPONSES: 405_000,
    Operation.EMBEDDINGS: 300_000,
    Operation.MODERATIONS: 0,
}
ELSEWHERE = (
    # What OpenAI has and the table has not.
    "/v1/responses/compact",
    "/v1/responses/resp_1",
    "/v1/responses/resp_1/cancel",
    "/v1/responses/resp_1/input_items",
    "/v1/chat/completions/chatcmpl-1",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/realtime",
    "/v1/realtime/sessions",
    "/v1/videos",
    "/v1/files",
    "/v1/files/file-1/content",
    "/v1/batches",
    "/v1/fine_tuning/jobs",
    "/v1/uploads",
    "/v1/vector_stores",
    "/v1/assistants",
    "/v1/threads/runs",
    "/v1/conversations",
    "/v1/containers",
    "/v1/evals",
    "/v1/edits",
    "/v1/engines/x/completions",
    "/v1/messages",
    "/v1/rerank",
    "/v1/ocr",
    "/v1beta/models/x:generateContent",
    # What other gateways have.
    "/openai_passthrough/v1/embeddings",
    "/openai/deployments/x/chat/completions",
    "/vertex-ai/v1/x",
    "/proxy/http://evil.test/",
    # Other ways to write what the table has.
    "/chat/completions",
    "/v1/chat/completions/",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/V1/Chat/Completions",
    "/v1/chat%2fcompletions",
    "/v1/./chat/completions",
    "/v1/x/../chat/completions",
    "/v1/chat/completions;x=1",
    "/v1/chat/completions%00",
    "/v2/chat/completions",
    "/",
    "*",
)


async def test_every_route_that_reaches_a_vendor_leaves_a_record_with_its_charge(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    model = await vendor_apart.script("every", input_tokens=100, output_tokens=7)
    assert set(OPERATIONS.values()) == set(Operation) == set(COSTS)
    for path, operation in OPERATIONS.items():
        key = await tollgate.new_key()
        await vendor_apart.forget()

        answer = await post(tollgate, key, path, asks(path, model, input="hello"))

        assert answer.status == 200, path
        (record,) = await assert_books(tollgate, key, records=1, charge=COSTS[operation])
        assert record["operation"] == operation
        assert len(await vendor_apart.quiet()) == 1
    print(f"A13 metered: {len(OPERATIONS)} of {len(OPERATIONS)} routes left a row and its charge")


async def test_a_thousand_tokens_of_an_embedding_cost_twenty_thousand_nano(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    name = await vendor_apart.script("thousand", input_tokens=1000)
    path = "/v1/embeddings"

    await post(tollgate, key, path, asks(path, f"small/{name}"))

    await assert_books(tollgate, key, records=1, charge=20_000)
    print("A13 embeddings: 1,000 tokens at 20 nano, 20,000 nano, 1 row")


async def test_a_model_without_a_price_reaches_no_vendor_on_any_route(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    for path in OPERATIONS:
        answer = await post(tollgate, key, path, asks(path, "unpriced/x", input="hello"))
        assert (answer.status, answer.error["code"]) == (404, "model_not_priced"), path

    assert await vendor_apart.log() == []
    await assert_nothing_recorded(tollgate, key)
    print(f"A13 unpriced: 404 model_not_priced on {len(OPERATIONS)} routes, 0 at the vendor")


async def test_an_organization_may_be_allowed_models_without_a_price(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    organization_id = await tollgate.new_organization(allows_unpriced=True)
    key = await tollgate.new_key(organization_id=organization_id)
    name = await vendor_apart.script("unpriced", input_tokens=100, output_tokens=7)

    answer = await post(tollgate, key, CHAT, asks(CHAT, f"unpriced/{name}"))

    assert answer.status == 200
    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert (record["input"], record["output"]) == (100, 7), "counted, though not charged"
    assert "unpriced" in record["flags"]


async def test_nothing_else_reaches_a_vendor(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    model = await vendor_apart.script("elsewhere")
    body: dict[str, Any] = asks(CHAT, model, input="hello")
    absolute = f"http://{vendor_apart.host}:{vendor_apart.port}{CHAT}"
    others = [("POST", path) for path in (*ELSEWHERE, absolute)]
    others += product(METHODS[1:], (*ELSEWHERE, *OPERATIONS, absolute))

    for method, path in others:
        async with caller(tollgate) as line:
            await line.send(request(path, key.secret, body, method=method))
            answer = await line.answer()
        assert 400 <= answer.status < 500, (method, path)
        assert answer.error["message"], (method, path)

    assert await vendor_apart.log() == []
    await assert_nothing_recorded(tollgate, key)
    print(f"A13 elsewhere: {len(others)} other requests refused, 0 at the vendor, 0 rows")

"""Requests that the management API's document allows, and some that it does not, by schemathesis.

Asked as somebody who may do everything: an owner who is an operator. Nothing may fail, and every
answer must be one that the document has, in the form that it gives.
"""

import asyncio
import os
import re
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest

from gateway.management.routes import ROUTES
from gateway.rest.server import SESSION_COOKIE
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.till import open_till
from tests.scenarios.scale import LONG

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(3_000 if LONG else 240)]

EVERYTHING = "everything"
GROUPS = Counter(route.name.partition(".")[0] for route in ROUTES)
EXAMPLES = 6  # of each operation
CASES = 2_000  # of each group of operations at least, in the long form
# All that can be said of one answer. Not `ignored_auth`: here every request has its session, and
# who may ask is the matrix' matter. Not `positive_data_acceptance`: a cursor is one of an answer
# before, which no schema can say, and 1.0, an integer to JSON Schema, is no amount of money. Not
# `missing_required_header` and `ensure_resource_availability`: who may ask is looked at first, and
# who asks of an organization that they are not in is told that there is none.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
    "unsupported_method"
)
LATER_CHECKS = "use_after_free"
# Done once, they end the session that all the others are asked with.
ENDING = ("sessions.sign_out", "sessions.end")
_TESTED = re.compile(r"(\d+) generated")


async def asked(
    office: Office, owner: Browser, document: Path, *arguments: str, examples: int
) -> str:
    """What schemathesis says of the document's operations."""
    said = (await owner.get("/openapi.json")).body
    for operations in said["paths"].values():
        for operation in operations.values():
            del operation["security"]  # it comes with each request, so none is without
    document.write_bytes(orjson.dumps(said))
    (cookie,) = [one.value for one in owner.cookies() if one.key == SESSION_COOKIE]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", office.url),
        *("--max-examples", str(examples), "--mode", "all", "--no-color"),
        *("--checks", f"{CHECKS},{LATER_CHECKS}" if LONG else CHECKS),
        *("--header", f"Cookie: {SESSION_COOKIE}={cookie}"),
        *("--header", f"X-CSRF-Token: {owner.headers['X-CSRF-Token']}"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},  # noqa: TID251 - for a child
    )
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text[-30_000:]
    return text


@pytest.mark.parametrize("group", sorted(GROUPS) if LONG else [EVERYTHING])
async def test_every_answer_is_one_that_the_document_has(
    group: str, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with open_till(postgres_url, redis_url, tmp_path) as office:
        office.clock.is_rushing = True
        owner = await office.operator("root@example.com")
        chosen = [word for name in ENDING for word in ("--exclude-operation-id", name)]
        examples, expected = EXAMPLES, len(ROUTES) * EXAMPLES
        if group != EVERYTHING:
            chosen += ["--include-tag", group]
            examples, expected = -(-CASES // GROUPS[group]), CASES
        path = tmp_path / "openapi.json"
        text = await asked(office, owner, path, *chosen, examples=examples)
    tested = _TESTED.search(text)
    assert tested, text
    assert int(tested[1]) >= expected
    print(f"\nschemathesis: {group}: {GROUPS[group] or len(ROUTES)} operations, {tested[1]} cases")

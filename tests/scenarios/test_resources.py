"""What is sent to use up memory or time is refused with the right status, in bounded memory.

Short form: a bomb of 512 MiB; LONG=1: of 1 GiB, from 1 MiB.
"""

import base64
import zlib
from typing import Any

import orjson
import pytest

from tests.scenarios.caller import CHAT, Answer, Caller, asks, caller, post, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_nothing_recorded
from tests.scenarios.measured import Peaks, rss_mib
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario

MIB = 1 << 20
BOMB_BYTES = (1 << 30) if LONG else 512 * MIB
GROWTH_MIB_MAX = 50.0
KEPT_MIB_MAX = 2 * 64  # what is kept of a body, and once more while it is put together


def bomb(before: bytes = b"", after: bytes = b"") -> bytes:
    """Zeros without end, packed; what is before and after them can be read."""
    packer = zlib.compressobj(9, wbits=31)
    packed = [packer.compress(before)]
    packed += [packer.compress(b" " * MIB) for _ in range(BOMB_BYTES // MIB)]
    return b"".join([*packed, packer.compress(after), packer.flush()])


def nested(depth: int) -> bytes:
    """A call whose metadata is as deep as that."""
    body = orjson.dumps(asks(CHAT, "gpt-4o-mini"))
    return body[:-1] + b', "metadata": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b"}"


async def sent(tollgate: Deployment, data: bytes) -> Answer:
    """The answer to these bytes, on a connection of their own."""
    async with caller(tollgate) as line:
        await line.send(data)
        return await line.answer()


async def refusals(tollgate: Deployment, key: Key) -> dict[str, tuple[int, str]]:
    """What each request that wants too much is told."""
    body = orjson.dumps(asks(CHAT, "gpt-4o-mini"))
    packed = {"Content-Encoding": "gzip"}
    many = {f"X-Header-{number}": "x" for number in range(200)}
    large = {"Content-Length": str(33 * MIB)}
    odd = {
        "a body of 33 MiB": request(CHAT, key.secret, b"", headers=large),
        "200 headers": request(CHAT, key.secret, body, headers=many),
        "a packed body": request(CHAT, key.secret, bomb(body), headers=packed),
        "depth 2,000": request(CHAT, key.secret, nested(2_000)),
        "depth 200,000": request(CHAT, key.secret, nested(200_000)),
    }
    told = {}
    for name, data in odd.items():
        answer = await sent(tollgate, data)
        told[name] = (answer.status, answer.error["code"])
    return told


async def test_a_request_that_would_use_up_memory_is_refused_for_what_it_is(
    tollgate: Deployment, key: Key
) -> None:
    pids = tollgate.pids("worker")
    await post(tollgate, await tollgate.new_key(), CHAT, asks(CHAT, "gpt-4o-mini"))
    before = rss_mib(pids)
    told = await refusals(tollgate, key)
    grown = rss_mib(pids) - before
    assert told == {
        "a body of 33 MiB": (413, "request_too_large"),
        "200 headers": (400, "bad_http"),
        "a packed body": (415, "unsupported_encoding"),
        "depth 2,000": (400, "invalid_json"),
        "depth 200,000": (400, "invalid_json"),
    }
    assert grown < GROWTH_MIB_MAX
    assert tollgate.pids("worker") == pids
    await assert_nothing_recorded(tollgate, key)
    print(f"T20 requests: {told}; workers grew by {grown:.0f} MiB, none restarted")


BOMBS: dict[str, dict[str, Any]] = {
    "a body": {"content_type": "application/json"},
    "a stream": {"content_type": "text/event-stream"},
}


@pytest.mark.parametrize("kind", BOMBS)
async def test_a_vendors_bomb_is_not_kept_in_memory(
    tollgate: Deployment, vendor_apart: Vendor, kind: str
) -> None:
    key = await tollgate.new_key(credit_usd="10000")
    packed = bomb(b": ", b"\n\n") if kind == "a stream" else bomb()
    model = await vendor_apart.script(
        "bomb",
        raw=base64.b64encode(packed).decode(),
        headers={"content-encoding": "gzip"},
        **BOMBS[kind],
    )
    pids = tollgate.pids("worker")
    peaks, seen = Peaks(pids), 0
    async with Caller.at("127.0.0.1", tollgate.ports["data"]) as line:
        await line.send(request(CHAT, key.secret, asks(CHAT, model, stream=kind == "a stream")))
        head = await line.head()
        try:
            async for piece in line.pieces(head):
                seen += len(piece)
        except (EOFError, ConnectionError):
            pass
    grown = max(peaks.grown()) >> 20
    assert grown < KEPT_MIB_MAX + GROWTH_MIB_MAX
    assert tollgate.pids("worker") == pids
    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert (head.status, record["outcome"]) == (502, "upstream_error")
    assert seen < MIB, "what is passed on is the error"
    print(
        f"T20 bomb, {kind}: {len(packed) >> 10:,} KiB that are {BOMB_BYTES >> 20:,} MiB: status"
        f" {head.status}, {seen >> 20:,} MiB passed on, a worker grew by {grown} MiB,"
        f" {record['outcome']}, {record['charge']:,} nano"
    )

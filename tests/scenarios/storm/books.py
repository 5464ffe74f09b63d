"""After a storm: what callers got, what the vendor billed and what the books say, side by side.

The oracle is outside of the system: the callers' log and the vendor's. Nothing that Tollgate says
of itself is believed.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.fcall import key_names
from ledger.functions import Epoch, Image, Partition
from ledger.stream import is_window
from tests.scenarios.deployment import Deployment
from tests.scenarios.invariants import owed
from tests.scenarios.storm.load import Load, Made, nonce_in
from tests.vendor import Entry, Vendor

DRAINED_S_MAX = 10.0

_AWAY = (RedisError, Epoch, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)

_PARTS = """
    SELECT number, generation, state, watermark_generation, watermark_id FROM part ORDER BY number
"""
_WALLETS = """
    SELECT id::text AS id, base, spent FROM wallet WHERE partition = $1
    UNION ALL
    SELECT id, base, spent FROM cap_window WHERE partition = $1
"""
_CALLS = """
    SELECT call_id::text AS id, organization_id::text AS organization, kind, charge, usage_source
    FROM usage_call WHERE admitted_at >= to_timestamp($1)
"""
_CHARGED = """
    SELECT w.id::text, w.base - w.spent AS balance,
        (SELECT coalesce(sum(charge), 0) FROM usage_call WHERE organization_id = w.organization_id)
            ::bigint AS charged
    FROM wallet AS w
"""
_LETTERS = "SELECT count(*) FROM dead_letter"
_RECOVERIES = """
    SELECT count(*), coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY took), 0),
           coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY took), 0)
    FROM (SELECT extract(epoch FROM ended_at - started_at) * 1000 AS took
          FROM recovery_log WHERE ended_at IS NOT NULL) AS ended
"""


def now_s() -> float:
    """The time, unix s, as ids of calls have it that begin from now on: in whole milliseconds."""
    return time.time_ns() // 1_000_000 / 1_000


class Sums(NamedTuple):
    """What a round came to."""

    records: int
    kinds: Mapping[str, int]
    dead_letters: int
    drained_s: float  # from healing until nothing was under way


async def settled(
    tollgate: Deployment,
    vendor: Vendor,
    load: Load,
    *,
    since_s: float,
    healed_s: float,
    granted: Mapping[str, int],
    is_disk_lost: bool = False,
    beside: Iterable[Deployment] = (),
) -> Sums:
    """Wait until everything is booked and assert that it is what callers and vendor say.

    `since_s`: when the round began; `healed_s`: when nothing was broken any more, by the loop's
    clock; `granted`: what each wallet was ever given, nano-USD.
    `is_disk_lost`: a gateway died with its journal, so what it had not answered may have no charge.
    `beside`: gateways that work on the same stores.
    """
    __tracebackhide__ = True
    drained_s = await drained(tollgate, vendor, healed_s=healed_s, beside=beside)
    seen = await vendor.quiet()
    connection = await tollgate.postgres()
    try:
        records = {row["id"]: row for row in await connection.fetch(_CALLS, since_s)}
        _compare(load, seen, records, is_disk_lost=is_disk_lost)
        for wallet, balance, charged in await connection.fetch(_CHARGED):
            assert balance == granted.get(wallet, 0) - charged, f"wallet {wallet}"
        letters = await connection.fetchval(_LETTERS)
    finally:
        await connection.close()
    assert "No difference." in await asyncio.to_thread(tollgate.run, "verify")
    kinds = Counter(row["kind"] for row in records.values())
    return Sums(len(records), kinds, letters, drained_s)


async def drained(
    tollgate: Deployment, vendor: Vendor, *, healed_s: float, beside: Iterable[Deployment] = ()
) -> float:
    """Wait until nothing is under way any more; how long after healing that was, seconds."""
    loop = asyncio.get_running_loop()
    await vendor.quiet()
    gateways = (tollgate, *beside)
    while rest := "".join(map(_left_behind, gateways)) or await _unsettled(tollgate):
        took_s = loop.time() - healed_s
        assert took_s < DRAINED_S_MAX, f"after {took_s:.1f} s: {rest}"
        await asyncio.sleep(0.1)
    return loop.time() - healed_s


def _left_behind(tollgate: Deployment) -> str:
    """The journals of dead workers: until their calls are told by them, leases may have ended some,
    which says less than is known; "" if there are none.
    """
    living = tollgate.pids("worker")
    journals = (tollgate.data / "journal").iterdir()
    # A name that begins with a point is of a journal that is about to be.
    names = [path.name for path in journals if not path.name.startswith(".")]
    names = [name for name in names if int(name.split("-")[2]) not in living]
    return f"not adopted and told yet: {names}" if names else ""


async def _unsettled(tollgate: Deployment) -> str:
    """What is still under way in the stores; "" once nothing is: both agree and nothing is held."""
    try:
        async with asyncio.timeout(5.0):
            connection = await tollgate.postgres()
            try:
                async with tollgate.redis() as redis:
                    return await _disagreement(connection, redis)
            finally:
                connection.terminate()
    except _AWAY as error:
        return repr(error)


async def _disagreement(connection: asyncpg.Connection, redis: Redis) -> str:
    for part in await connection.fetch(_PARTS):
        partition = Partition(redis, part["number"])
        state = await partition.state()
        if part["state"] != "active" or not state.is_active():
            return f"partition {part['number']} is {part['state']}, Redis says {state}"
        keys = key_names(part["number"], state.generation)
        held, slots = await redis.zcard(keys[7]), await redis.hgetall(keys[9])
        if held or slots:
            holds = await partition.open_holds(state.generation)
            return f"{held} open in partition {part['number']}: {holds}; slots {slots}"
        image = await partition.scan(state.generation, count=10_000)
        position = part["watermark_generation"], _at(part["watermark_id"])
        if position < (state.generation, _at(image.last_id)):
            return f"{image.last_id} is not flushed, only {tuple(part)}"
        if wrong := different(image, await connection.fetch(_WALLETS, part["number"])):
            return wrong
    return ""


def different(image: Image, wallets: Iterable[Sequence[Any] | asyncpg.Record]) -> str:
    """What Redis and Postgres do not say the same of; a window nobody spent in may be missing."""
    there = {w.wallet: (w.base, w.spent, w.held, w.free) for w in image.wallets}
    posted = {w[0]: (w[1], w[2], 0, w[1] - w[2]) for w in wallets}
    # Postgres has a row of a window from its first charge on, Redis from its first hold on.
    unspent = {w.wallet: (w.base, 0, 0, w.base) for w in image.wallets if is_window(w.wallet)}
    for name in {name for name in posted if not is_window(name)} | there.keys():
        if there.get(name) != posted.get(name, unspent.get(name)):
            return f"Redis {there.get(name)}, Postgres {posted.get(name)} of {name}"
    return ""


def _at(stream_id: str) -> tuple[int, ...]:
    return tuple(map(int, stream_id.split("-")))


def _compare(
    load: Load, seen: Iterable[Entry], records: Mapping[str, Any], *, is_disk_lost: bool
) -> None:
    """Assert that every call is as callers and vendor say."""
    __tracebackhide__ = True
    answered = load.answered
    billed: dict[str, list[Entry]] = {}
    for entry in seen:
        billed.setdefault(nonce_in(entry.body), []).append(entry)

    ids = [call.call_id for call in answered.values()]
    assert len(set(ids)) == len(ids), "two calls were given one id"
    lost = [call for call in answered.values() if call.call_id not in records]
    assert not lost, f"{len(lost)} of {len(answered)} answered calls have no record: {lost[:3]}"
    wrong = _wrong(load, billed, records)
    assert not wrong, f"{len(wrong)} of {len(answered)} answered calls: {wrong[:3]}"

    cut = [
        (made, billed.pop(nonce))
        for nonce, made in load.made.items()
        if made.call_id and nonce not in answered
    ]
    found = (_wrong_of_cut(*one, records, is_disk_lost=is_disk_lost) for one in cut)
    wrong = [told for told in found if told]
    assert not wrong, f"{len(wrong)} of {len(cut)} calls whose answer was cut: {wrong[:3]}"

    known = {*ids, *(made.call_id for made, _ in cut)}
    others = [row for call_id, row in records.items() if call_id not in known]
    unanswered = [entries for nonce, entries in billed.items() if nonce not in answered]
    bounds = [made.asking.worst for made in load.made.values() if not made.status]
    _assert_of_unknown(others, unanswered, bounds, is_disk_lost=is_disk_lost)


def _wrong(load: Load, billed: Mapping[str, list[Entry]], records: Mapping[str, Any]) -> list[str]:
    found = []
    for nonce, call in load.answered.items():
        row, amount = records[call.call_id], owed(billed[nonce])
        if (row["kind"], row["organization"]) != ("settled", call.organization_id):
            found.append(f"{call} is {dict(row)}")
        elif call.is_limited:  # ended by the gateway, before the vendor said what it comes to
            found += filter(None, [_wrong_of_estimate(row, load.made[nonce].asking.worst)])
        elif row["charge"] != amount:
            found.append(f"{call} was billed {amount} and is {dict(row)}")
    return found


def _wrong_of_cut(
    made: Made, entries: list[Entry], records: Mapping[str, Any], *, is_disk_lost: bool
) -> str:
    """What is wrong with a call of which its caller saw the head of a good answer, and no end."""
    row, amount = records.get(made.call_id), owed(entries)
    if row is None or row["kind"] in ("expired", "released"):
        return "" if is_disk_lost else f"{made} was billed {amount} and is {row}"
    if row["kind"] == "lost":
        return _wrong_of_estimate(row, made.asking.worst)
    return "" if row["charge"] == amount else f"{made} was billed {amount} and is {row}"


def _wrong_of_estimate(row: Any, worst: int) -> str:
    is_right = row["usage_source"] == "estimated" and row["charge"] <= worst
    return "" if is_right else f"{row} must be estimated, and cost {worst} at most"


def _assert_of_unknown(
    records: list[Any], billed: list[list[Entry]], bounds: list[int], *, is_disk_lost: bool
) -> None:
    """Of calls without even the head of an answer: each that the vendor saw has its record.

    Nobody outside knows their ids, so they are compared as a whole: what is settled was billed to
    the nano-USD; what is lost is marked as estimated, and the dearest is not above the worst case
    of the dearest call, the next not above that of the next; and nothing else costs anything.
    `bounds`: the worst cases of those calls, and of those that never came to the vendor.
    """
    settled = Counter(row["charge"] for row in records if row["kind"] == "settled")
    strange = settled - Counter(owed(entries) for entries in billed)
    assert not strange, f"settled, but billed to nobody: {strange}"
    lost = [row for row in records if row["kind"] == "lost"]
    assert len(lost) <= len(bounds), "more calls were lost than made"
    lost.sort(key=lambda row: int(row["charge"]), reverse=True)
    pairs = zip(lost, sorted(bounds, reverse=True), strict=False)
    wrong = [told for row, worst in pairs if (told := _wrong_of_estimate(row, worst))]
    assert not wrong, f"{len(wrong)} of {len(lost)} lost calls: {wrong[:3]}"
    free = [row for row in records if row["kind"] in ("expired", "released")]
    assert not any(row["charge"] for row in free), "a call that consumed nothing has a charge"
    ended = settled.total() + len(lost)
    is_complete = is_disk_lost or ended >= len(billed)
    assert is_complete, f"the vendor has seen {len(billed)} cut calls, {ended} have ends"


async def recoveries(connection: asyncpg.Connection) -> tuple[int, float, float]:
    """How many partitions were recovered; the median time and the 99th percentile, ms."""
    row = await connection.fetchrow(_RECOVERIES)
    assert row is not None
    return row[0], float(row[1]), float(row[2])

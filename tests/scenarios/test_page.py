"""The metrics page: it says what happened, no more and no less, and nobody can make it grow."""

import asyncio
import random
import string
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.keys import issue
from tests.scenarios.caller import CHAT, RESPONSES, asks, caller, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, owed
from tests.scenarios.page import Page, page
from tests.scenarios.scale import LONG
from tests.scenarios.vendors import many_names
from tests.vendor import Entry, Vendor

pytestmark = pytest.mark.scenario
JUNK = 100_000 if LONG else 5_000
SERIES_MAX, PAGE_BYTES_MAX = 2_000, 300 * 1024
GROWTH_MAX = 200  # series that calls like these bring about, however many they are
LINES = 32
MIXED = 1_000
EMBEDDINGS, MODERATIONS = "/v1/embeddings", "/v1/moderations"

# Every metric there is to be on the page after mixed calls; see gateway/metrics.py.
ALWAYS = {
    "calls_total",
    "calls_open",
    "calls_draining",
    "refusals_total",
    "call_seconds_count",
    "overhead_seconds_count",
    "time_to_first_token_seconds_count",
    "usage_total",
    "charge_nanousd_total",
    "key_lookups_total",
    "key_queries_total",
    "auth_failures_total",
    "holds_refused_total",
    "holds_open",
    "hold_seconds_count",
    "conveyor_batch_items_count",
    "conveyor_wait_seconds_count",
    "journal_unproven_ends",
    "journal_unproven_oldest_seconds",
    "journal_bytes",
    "journal_full_total",
    "ends_total",
    "stream_backlog_entries",
    "flush_lag_seconds",
    "flush_seconds_count",
    "dead_letters_total",
    "ledger_drift_nanousd",
    "epochs_total",
    "recoveries_total",
    "recovery_seconds_count",
    "upstream_connections",
    "unmetered_total",
    "upstream_errors_total",
    "log_lines_dropped_total",
    "loop_lag_seconds_count",
    "process_cpu_seconds",
    "process_resident_memory_bytes",
}


@pytest.fixture
async def tollgate(folder: Path, vendor_apart: Vendor) -> AsyncIterator[Deployment]:
    """A deployment of its own, whose page has counted nothing yet."""
    await vendor_apart.forget()
    changes = {**many_names(vendor_apart.port), "ledger": {"audit_interval_s": 1}}
    port = vendor_apart.port
    async with Deployment.started(
        folder, vendor_port=port, workers=2, changes=changes
    ) as deployment:
        yield deployment


def word(chosen: random.Random) -> str:
    """What nobody has configured."""
    return "".join(chosen.choices(string.ascii_letters + string.digits + "/-_.:", k=24))


def junk(key: Key, number: int, chosen: random.Random) -> bytes:
    """A request with a name of its own in one place: model, user, key, path or method."""
    ask = asks(CHAT, "free/m", max_tokens=5)
    match number % 6:
        case 0:
            return request(CHAT, key.secret, {**ask, "model": f"dead/{word(chosen)}"})
        case 1:
            return request(CHAT, key.secret, {**ask, "user": word(chosen)})
        case 2:
            return request(CHAT, issue(chosen.randbytes(32)).secret.reveal(), ask)
        case 3:
            return request(f"/v1/{word(chosen)}", key.secret, ask)
        case 4:
            return request(CHAT, key.secret, {**ask, "model": f"free/{word(chosen)}"})
        case _:
            return request(CHAT, key.secret, ask, method=word(chosen)[:5].upper())


async def pour(tollgate: Deployment, requests: Iterator[bytes], statuses: Counter[int]) -> None:
    """Ask one after the other, on one connection for as long as it is kept."""
    is_over = False
    while not is_over:
        async with caller(tollgate) as line:
            is_over = True
            for data in requests:
                await line.send(data)
                answer = await line.answer()
                statuses[answer.status] += 1
                if answer.headers.get("connection") == "close":
                    is_over = False
                    break


async def test_names_that_clients_invent_do_not_make_the_page_grow(fleet: Deployment) -> None:
    key = await fleet.new_key()
    chosen, statuses = random.Random(5), Counter[int]()  # noqa: S311 - names, no secrets
    requests = (junk(key, number, chosen) for number in range(JUNK))
    before = await page(fleet)
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(LINES):
            group.create_task(pour(fleet, requests, statuses))
    took_s = time.monotonic() - began_s
    after = await page(fleet)
    series, size = len(after.samples), len(after.text.encode())
    assert statuses.total() == JUNK
    assert series <= min(SERIES_MAX, len(before.samples) + GROWTH_MAX)
    assert size <= PAGE_BYTES_MAX
    models = {sample.labels["model"] for sample in after.of("calls_total")}
    assert models <= {*fleet.config["models"], "other"}
    assert after.sum("unmetered_total") == 0
    admitted = int(after.sum("calls_total") - before.sum("calls_total"))
    await assert_books(fleet, key, records=admitted, charge=0)
    print(
        f"G5: {JUNK} requests with invented models, users, keys, paths, methods in {took_s:.0f} s:"
        f" {series} series (before {len(before.samples)}), {size / 1024:.0f} KiB; {dict(statuses)}"
    )


async def scripted(vendor: Vendor) -> dict[str, str]:
    """Models that do what their names say."""
    return {
        "good": await vendor.script("good", input_tokens=100, output_tokens=10, cached_tokens=20),
        "thinking": await vendor.script("thinking", output_tokens=30, reasoning_tokens=20),
        "silent": await vendor.script("silent", usage="never", output_tokens=6, deltas=6),
        "refused": await vendor.script("refused", status=400),
        "failed": await vendor.script("failed", status=500),
        "cut": await vendor.script("cut", reset_after=2, output_tokens=6, deltas=6),
    }


def mixed(models: dict[str, str], chosen: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Calls of every kind: path and body."""
    for number in range(MIXED):
        path = (CHAT, CHAT, CHAT, RESPONSES, EMBEDDINGS)[number % 5]
        name = "good"
        if path == CHAT:
            name = chosen.choice([*models, "good", "good", "good"])
        fields: dict[str, Any] = {"max_tokens": 50} if path == CHAT else {}
        if path != EMBEDDINGS:
            fields["stream"] = name in ("silent", "cut") or chosen.random() < 0.5
        yield path, asks(path, f"vendor/{models[name]}", **fields)


async def refuse_some(tollgate: Deployment, key: Key) -> None:
    """A few calls that nobody admits, of each reason."""
    poor = await tollgate.new_key(credit_usd="0")
    narrow = await tollgate.new_key(rpm=1)
    ask = asks(CHAT, "vendor/m", max_tokens=5)
    async with caller(tollgate) as line:
        for secret, body, status in (
            (key.secret + "x", ask, 401),
            (issue(b"k" * 32).secret.reveal(), ask, 401),
            (poor.secret, ask, 402),
            (key.secret, {**ask, "model": "keyless/m"}, 404),
            (key.secret, {**ask, "model": "unpriced/m"}, 404),
            (key.secret, {**ask, "max_tokens": 0}, 400),
            (narrow.secret, ask, 200),
            (narrow.secret, ask, 429),
        ):
            assert (await line.post(CHAT, secret, body)).status == status


async def test_the_page_says_what_the_vendor_has_seen(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key, chosen = await tollgate.new_key(), random.Random(7)  # noqa: S311 - the same mix each time
    statuses: Counter[int] = Counter()
    models = await scripted(vendor_apart)
    requests = (request(path, key.secret, body) for path, body in mixed(models, chosen))
    async with asyncio.TaskGroup() as group:
        for _ in range(LINES):
            group.create_task(pour(tollgate, requests, statuses))
    records = await assert_books(tollgate, key, records=MIXED)
    entries = await vendor_apart.quiet()
    await refuse_some(tollgate, key)
    read = await audited(tollgate)
    (one,) = [entry for entry in await vendor_apart.quiet() if entry not in entries]
    assert_calls(read, records, extra=1)
    honest = [entry for entry in entries if entry.script in ("good", "thinking")]
    assert_money(read, records, honest, extra=one)
    assert_at_rest(read)
    missing = {name for name in ALWAYS if not any(True for _ in read.of(name))}
    assert missing == set()
    retries = read.sum("upstream_retries_total")
    assert len(entries) + 1 == MIXED + 1 + retries, "the vendor saw each attempt"
    print(
        f"page: {len(read.samples)} series, {len(read.text) / 1024:.0f} KiB after {MIXED} mixed"
        f" calls: calls, tokens, charges and attempts equal the vendor's log; {dict(statuses)}"
    )


async def audited(tollgate: Deployment) -> Page:
    """The page once the last end is in Postgres and an audit has compared everything."""
    async with asyncio.timeout(20):
        while True:
            read = await page(tollgate)
            is_flushed = read.sum("stream_backlog_entries") == read.sum("holds_open") == 0
            is_told = read.sum("ends_total", kind="recorded") > MIXED
            if is_flushed and is_told and len([*read.of("ledger_drift_nanousd")]) == 16:
                return read


def assert_calls(read: Page, records: list[Any], *, extra: int) -> None:
    """Calls by outcome, as the records have them."""
    counted = read.by("calls_total", "outcome")
    recorded = Counter(row["outcome"] for row in records)
    recorded["success"] += extra
    assert counted == recorded
    assert read.sum("calls_total") == read.sum("call_seconds_count") == MIXED + extra
    assert read.sum("hold_seconds_count") == MIXED + extra
    assert read.by("ends_total", "kind")["recorded"] == MIXED + extra
    assert read.by("auth_failures_total", "cause") == {"malformed": 1, "unknown": 1}
    assert read.by("holds_refused_total", "limit") == {"wallet": 1, "rate": 1}
    assert read.by("refusals_total", "cause") == {
        "insufficient_credit": 1,
        "invalid_api_key": 2,
        "invalid_value": 1,
        "model_not_found": 1,
        "model_not_priced": 1,
        "rate_limit_exceeded": 1,
    }
    errors = read.by("upstream_errors_total", "phase")
    assert errors["status"] > 0
    assert errors["body"] > 0
    assert "other" not in {sample.labels.get("provider") for sample in read.samples}


def assert_money(read: Page, records: list[Any], honest: list[Entry], *, extra: Entry) -> None:
    """Tokens and charges: as the records have them, and as the vendor billed what it reported."""
    reported = [row for row in records if row["usage_source"] == "reported"]
    assert sum(row["charge"] for row in reported) == owed(honest)
    charged = sum(row["charge"] for row in records) + owed([extra])
    assert read.sum("charge_nanousd_total") == charged
    more = {
        "input": extra.billed_input - extra.billed_cached,
        "cache_read": extra.billed_cached,
        "output": extra.billed_output,
    }
    units = read.by("usage_total", "unit")
    assert units == {unit: sum(row[unit] for row in records) + n for unit, n in more.items()}
    assert read.sum("usage_estimated_total") == len(records) - len(reported) - unused(records)


def unused(records: list[Any]) -> int:
    """How many calls consumed nothing."""
    return sum(row["usage_source"] == "none" for row in records)


def assert_at_rest(read: Page) -> None:
    """What is 0 when nothing goes on, and what is 0 always."""
    for name in (
        "calls_open",
        "calls_draining",
        "holds_open",
        "stream_backlog_entries",
        "journal_unproven_ends",
        "ledger_drift_nanousd",
        "journal_full_total",
        "dead_letters_total",
        "log_lines_dropped_total",
        "unmetered_total",
        "ledger_unavailable_total",
    ):
        assert read.sum(name) == 0, name
    assert read.sum("upstream_connections", state="busy") == 0
    assert read.sum("recoveries_total") == 16, "one for each partition, at the first start"
    assert all(0 < sample.value < 60 for sample in read.of("process_cpu_seconds"))
    assert all(10e6 < one.value < 1e9 for one in read.of("process_resident_memory_bytes"))
    assert {one.labels["process"] for one in read.of("process_cpu_seconds")} == {
        "control",
        "worker-0",
        "worker-1",
    }

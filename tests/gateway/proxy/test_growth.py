"""Streams that outgrow their hold: it is raised in time, or they end well; nobody overspends."""

import asyncio
import gc
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.principal import Budget, Period
from gateway.proxy.growth import UNANSWERED
from gateway.proxy.live import LiveCall
from gateway.proxy.relay import REFUSED
from gateway.proxy.typical import LEARNED_AFTER
from ledger.functions import Partition
from ledger.money import Nanos
from ledger.record import Outcome
from tests.gateway.principals import PRINCIPAL
from tests.gateway.proxy.gatehouse import CREDIT, Gatehouse, OpenGate, events, knows, request
from tests.gateway.proxy.small_holds import (
    ASK,
    FIRST,
    INPUT_NANOS,
    OUTPUT_NANOS,
    changed,
    finish_of,
    text_of,
)
from tests.ledger.own_valkey import OwnValkey
from tests.vendor import Vendor


class TestExtending:
    async def test_a_stream_that_grows_beyond_its_hold_is_held_for_and_charged_exactly(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("g", input_tokens=10, output_tokens=900, text=" t")
        async with open_gate(changes=changed()) as gate:
            _, _, body = await gate.post({**ASK, "model": model})
            wallet = await gate.settled()
            (record,) = await gate.records()

        assert text_of(body) == " t" * 900
        assert record.charge == 10 * INPUT_NANOS + 900 * OUTPUT_NANOS <= record.held
        assert (record.outcome, record.flags) == (Outcome.SUCCESS, [])
        assert (wallet["held"], wallet["free"]) == (0, CREDIT - record.charge)
        assert record.held < 16_384 * OUTPUT_NANOS  # twice and twice again, not all at once

    async def test_it_is_held_for_before_it_has_come(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("g", output_tokens=900, text=" t", hold_at=80)
        async with open_gate(changes=changed()) as gate:
            line = await gate.line()
            line.writer.write(request({**ASK, "model": model}))
            await vendor.held(1)
            async with asyncio.timeout(5):
                while await held_now(gate) < 2 * FIRST * OUTPUT_NANOS:
                    await asyncio.sleep(0.01)
            await vendor.release()

    async def test_what_streams_of_a_model_need_is_learned(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("g", output_tokens=20, text=" t")
        ask = {**ASK, "model": model}
        async with open_gate(changes=changed()) as gate:
            for _ in range(LEARNED_AFTER + 1):
                await gate.post(ask)
            records = await gate.records()

        held = [record.held for record in records]
        assert held[0] - held[-1] == (FIRST - 23) * OUTPUT_NANOS
        assert len(set(held[:LEARNED_AFTER])) == 1

    @pytest.mark.parametrize(
        ("more", "settings"),
        [
            ({"stream": False}, {}),
            ({"n": 2}, {}),
            ({"reasoning_effort": "low"}, {}),
            ({"tools": [{"type": "web_search"}]}, {}),
            ({}, {"reasoning": True}),
        ],
    )
    async def test_a_call_that_no_stream_shows_growing_holds_its_worst_case(
        self, open_gate: OpenGate, more: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        ask = {**ASK, "model": "m", "max_tokens": 600, **more}
        changes = changed(**settings)
        async with open_gate(changes=changes) as gate:
            await gate.post(ask)
            (record,) = await gate.records()

        assert record.held >= 600 * more.get("n", 1) * OUTPUT_NANOS

    async def test_a_model_that_was_seen_to_reason_holds_its_worst_case_from_then_on(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("r", output_tokens=30, reasoning_tokens=20, text=" t")
        ask = {**ASK, "model": model, "max_tokens": 600}
        async with open_gate(changes=changed()) as gate:
            await gate.post(ask)
            await gate.post(ask)
            first, second = await gate.records()

        assert first.held < 600 * OUTPUT_NANOS <= second.held

    async def test_a_stream_nobody_could_pay_is_refused_before_it_begins(
        self, open_gate: OpenGate
    ) -> None:
        ask = {**ASK, "model": "m", "max_tokens": 10**12}
        async with open_gate(changes=changed()) as gate:
            status, _, body = await gate.post(ask)

        assert (status, orjson.loads(body)["error"]["code"]) == (400, "call_too_large")


async def held_now(gate: Gatehouse) -> int:
    """What is held in the wallet at the moment."""
    image = await Partition(gate.redis, 0).snap(1, [PRINCIPAL.wallet])
    return image.wallets[0].held


class TestEnding:
    CREDIT = 5_000_000  # pays for about 310 tokens

    async def test_a_stream_whose_money_is_used_up_ends_as_at_a_limit_and_costs_what_was_shown(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("g", output_tokens=900, text=" t", interval_s=0.001)
        async with open_gate(changes=changed(), credit=self.CREDIT) as gate:
            _, _, body = await gate.post({**ASK, "model": model})
            wallet = await gate.settled()
            (record,) = await gate.records()
            (entry,) = await vendor.quiet()

        shown = text_of(body).count(" t")
        assert (finish_of(body), body[-14:]) == (["length"], b"data: [DONE]\n\n")
        assert (record.outcome, record.usage_source) == (Outcome.LIMITED, "estimated")
        assert (record.status, record.flags) == (200, [REFUSED])
        assert record.usage["output"] == shown > 2 * FIRST
        assert record.charge == record.list_price <= record.held
        assert record.charge == record.usage["input"] * INPUT_NANOS + shown * OUTPUT_NANOS
        assert (wallet["held"], wallet["spent"]) == (0, record.charge)
        assert 0 <= wallet["free"] == self.CREDIT - record.charge
        assert entry.left_s is not None
        assert entry.deltas < 900

    async def test_a_client_that_asked_for_the_usage_gets_it_at_an_early_end(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("g", output_tokens=900, text=" t")
        ask = {**ASK, "model": model, "stream_options": {"include_usage": True}}
        async with open_gate(changes=changed(), credit=self.CREDIT) as gate:
            _, _, body = await gate.post(ask)
            (record,) = await gate.records()

        last = events(body)[-1]
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == record.usage["output"]
        assert record.usage["output"] == text_of(body).count(" t")

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
    async def test_every_kind_of_stream_has_its_own_form_of_an_early_end(
        self, open_gate: OpenGate, vendor: Vendor, path: str
    ) -> None:
        model = await vendor.script("g", output_tokens=900, text=" t")
        ask = {"model": model, "stream": True, "prompt": "x"}
        if path.endswith("responses"):
            ask = {"model": model, "stream": True, "input": "x"}
        async with open_gate(changes=changed(), credit=self.CREDIT) as gate:
            _, _, body = await gate.post(ask, path=path)
            (record,) = await gate.records()

        last = events(body)[-1]
        if path.endswith("responses"):
            assert last["type"] == "response.incomplete"
            assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
            assert last["response"]["usage"]["output_tokens"] == record.usage["output"]
        else:
            assert last["choices"][0]["finish_reason"] == "length"
        assert record.outcome == Outcome.LIMITED
        assert record.charge <= record.held

    @pytest.mark.parametrize("size", [9, 40, 200])
    async def test_an_event_larger_than_what_is_left_costs_no_more_than_what_is_held(
        self, open_gate: OpenGate, vendor: Vendor, size: int
    ) -> None:
        model = await vendor.script("g", output_tokens=9_000, deltas=900, text="ten bytes " * size)
        async with open_gate(changes=changed(), credit=self.CREDIT) as gate:
            await gate.post({**ASK, "model": model})
            wallet = await gate.settled()
            (record,) = await gate.records()

        assert record.outcome == Outcome.LIMITED
        assert record.charge <= record.held
        assert wallet["free"] >= 0

    async def test_a_stream_that_comes_at_once_is_not_seen_to_end_before_it_is_paid_for(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        event = b'data: {"choices":[{"index":0,"delta":{"content":" t"}}]}\n\n'
        last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        usage = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":900}}\n\n'
        whole = event * 900 + last + usage + b"data: [DONE]\n\n"
        model = await vendor.script(
            "once", body=whole.decode(), content_type="text/event-stream", cuts=[]
        )
        async with open_gate(changes=changed(), credit=self.CREDIT) as gate:
            _, _, body = await gate.post({**ASK, "model": model})
            wallet = await gate.settled()
            (record,) = await gate.records()

        assert finish_of(body) == ["length"]
        assert record.usage["output"] == text_of(body).count(" t")
        assert wallet["free"] >= 0

    async def test_a_stream_read_on_for_a_client_that_left_ends_at_its_hold_too(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("g", output_tokens=900, text=" t", hold_at=20)
        async with open_gate(changes=changed(), credit=self.CREDIT) as gate:
            line = await gate.line()
            line.writer.write(request({**ASK, "model": model}))
            await vendor.held(1)
            await line.reader.readuntil(b"data: ")
            line.writer.transport.abort()
            async with asyncio.timeout(5):
                while not gate.calls.draining:
                    await asyncio.sleep(0.01)
            await vendor.release()
            wallet = await gate.settled()
            (record,) = await gate.records()

        assert record.outcome == Outcome.LIMITED
        assert wallet["free"] >= 0

    async def test_a_stream_ends_at_its_budget_too(
        self, open_gate: OpenGate, vendor: Vendor
    ) -> None:
        model = await vendor.script("c", output_tokens=900, text=" t")
        budget = Budget("key:k", Nanos(self.CREDIT), Period.DAILY)
        async with open_gate(
            changes=changed(), find=knows(PRINCIPAL._replace(budgets=(budget,)))
        ) as gate:
            await gate.post({**ASK, "model": model})
            (record,) = await gate.records()

        assert record.outcome == Outcome.LIMITED
        assert record.charge <= record.held <= self.CREDIT

    @pytest.mark.parametrize("credit", [CREDIT, 1_000_000_000])
    async def test_a_stream_that_grew_leaves_nothing_for_the_garbage_collector(
        self, open_gate: OpenGate, vendor: Vendor, credit: int
    ) -> None:
        model = await vendor.script("g", output_tokens=900, text=" t")
        async with open_gate(changes=changed(), credit=credit) as gate:
            gc.collect()  # what other tests left is not this call's
            gc.disable()
            try:
                await gate.post({**ASK, "model": model})
                await gate.settled()
                assert not [each for each in gc.get_objects() if isinstance(each, LiveCall)]
            finally:
                gc.enable()


class TestUnanswered:
    async def test_a_stream_goes_on_without_redis_and_is_charged_exactly_afterwards(
        self, valkey: OwnValkey, vendor: Vendor, tmp_path: Path
    ) -> None:
        model = await vendor.script(
            "g", input_tokens=10, output_tokens=900, text=" t", hold_at=FIRST // 2
        )
        opened = Gatehouse.opened(valkey.url, vendor, tmp_path, changes=changed())
        async with opened as gate:
            line = await gate.line()
            line.writer.write(request({**ASK, "model": model}))
            await vendor.held(1)
            valkey.pause()
            await vendor.release()
            body = b""
            while b"data: [DONE]\n\n" not in body:
                body += await line.reader.read(65_536)
            valkey.resume()
            wallet = await gate.settled()
            (record,) = await gate.records()

        assert body.count(b'" t"') == 900
        assert (record.outcome, record.flags) == (Outcome.SUCCESS, [UNANSWERED])
        assert record.charge == 10 * INPUT_NANOS + 900 * OUTPUT_NANOS
        assert (wallet["held"], wallet["spent"]) == (0, record.charge)

    async def test_what_was_never_held_is_not_counted_as_held_when_less_is_left(
        self, valkey: OwnValkey, vendor: Vendor, tmp_path: Path
    ) -> None:
        credit = 100 * INPUT_NANOS + 250 * OUTPUT_NANOS
        model = await vendor.script(
            "g", output_tokens=900, text=" t", interval_s=0.01, hold_at=FIRST // 2
        )
        opened = Gatehouse.opened(valkey.url, vendor, tmp_path, changes=changed(), credit=credit)
        async with opened as gate, asyncio.timeout(30):
            line = await gate.line()
            line.writer.write(request({**ASK, "model": model}))
            await vendor.held(1)
            valkey.pause()
            # What it sends waits at the server, and what the stream asks for waits behind it.
            assert (await gate.post({**ASK, "model": model}))[0] == 503
            (live,) = gate.calls.live.values()
            await vendor.release()
            while UNANSWERED not in live.record.flags:
                await asyncio.sleep(0.01)
            valkey.resume()
            body = b""
            while b"data: [DONE]\n\n" not in body:
                body += await line.reader.read(65_536)
            wallet = await gate.settled()
            records = {record.call_id: record for record in await gate.records()}

        record = records[live.call_id]
        assert record.outcome == Outcome.LIMITED
        assert record.charge <= record.held <= credit
        assert wallet["free"] >= 0


@pytest.mark.parametrize("seed", range(10))
async def test_no_race_of_streams_takes_a_wallet_below_zero_and_each_is_whole_or_ends_for_length(
    open_gate: OpenGate, vendor: Vendor, seed: int
) -> None:
    dice = random.Random(seed)  # noqa: S311 - repeatable
    credit = dice.randrange(2_000_000, 60_000_000)
    scripts = []
    for number in range(8):
        output = dice.choice([1, dice.randrange(2, 300), dice.randrange(300, 1_500)])
        cut_seed = dice.choice([None, dice.randrange(1_000)])
        pause_s = dice.choice([0.0, 0.0005])
        scripts.append(
            await vendor.script(
                f"p{number}",
                output_tokens=output,
                text=" t",
                cut_seed=cut_seed,
                interval_s=pause_s,
            )
        )
    # So many streams in one process with their vendor keep it from Redis' answers for long.
    changes = changed() | {"ledger": {"admission_timeout_s": 10}}
    async with open_gate(changes=changes, credit=credit) as gate:
        asks = [{**ASK, "model": dice.choice(scripts)} for _ in range(16)]
        for ask in asks:
            if dice.random() < 0.3:
                ask["max_tokens"] = dice.randrange(50, 2_000)
            if dice.random() < 0.3:
                ask["stream_options"] = {"include_usage": True}
        answers = await asyncio.gather(*[gate.post(ask) for ask in asks])
        wallet = await gate.settled()
        records = {record.call_id.hex(): record for record in await gate.records()}

    whole = ended = 0
    for status, headers, body in answers:
        if status != 200:
            assert status in (402, 429)
            continue
        record = records[headers["x-request-id"].replace("-", "")]
        assert body.endswith(b"data: [DONE]\n\n")
        (finish,) = finish_of(body)
        shown = text_of(body).count(" t")
        is_ended = record.outcome == Outcome.LIMITED
        assert finish == "length" if is_ended else finish in ("stop", "length")
        assert record.usage["output"] == shown
        assert record.charge == record.list_price <= record.held
        whole, ended = whole + (not is_ended), ended + is_ended
    assert wallet["held"] == 0
    assert 0 <= wallet["free"] == credit - sum(record.charge for record in records.values())
    assert whole + ended > 0, "nobody was let in"
    print(
        f"seed {seed}, ${credit / 1e9:.3f}: {whole} whole, {ended} ended early,"
        f" {16 - whole - ended} not let in"
    )

"""What is counted and logged of a call: enough to answer for it, nothing that is private."""

from dataclasses import replace
from typing import Any, NamedTuple

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.logs import Lines
from gateway.metrics import OTHER, Metrics
from gateway.proxy.live import LiveCall
from gateway.proxy.tell import KINDS_MAX, WHO_MAX, Teller
from gateway.settings import Model, Route
from ledger.admission import End
from ledger.money import NANOS_MAX, Nanos
from ledger.record import EndKind, Outcome, Record
from ledger.usage import Source, Unit
from tests.gateway.proxy.door import WALL
from tests.gateway.proxy.gatehouse import KEY, Gatehouse
from tests.vendor import Vendor


async def test_an_ended_call_is_one_line_and_its_figures(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("t", input_tokens=10, output_tokens=2)
    body = {"model": model, "messages": [{"role": "user", "content": "private words"}]}

    _, headers, _ = await gate.post(body)

    (line,) = gate.lines
    assert (line["event"], line["call"]) == ("call ended", headers["x-request-id"])
    assert (line["outcome"], line["charge_nanos"]) == ("success", 60_000)
    assert "private" not in str(line)
    assert KEY not in str(line)
    metrics = gate.metrics
    assert metrics.calls.series == {("vendor", "*", "success", "2xx"): 1}
    assert metrics.charge.series == {("vendor", "*"): 60_000}
    assert metrics.usage.series[("vendor", "*", "input")] == 10
    (cells,) = metrics.overhead_seconds.series.values()
    assert sum(cells[:-1]) == 1


async def test_a_refused_call_is_one_line_and_one_count(gate: Gatehouse) -> None:
    await gate.post({"model": "unpriced", "messages": []})

    (line,) = gate.lines
    assert (line["event"], line["status"], line["code"]) == (
        "call refused",
        404,
        "model_not_priced",
    )
    assert gate.metrics.refusals.series == {("model_not_priced",): 1}
    assert gate.metrics.calls.series == {}


async def test_a_call_that_its_vendor_refused_is_one_line_with_the_error(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("t", status=400, error={"message": "no", "code": "wrong"})

    await gate.post({"model": model, "messages": []})

    (line,) = gate.lines
    assert (line["event"], line["status"], line["code"]) == ("call ended", 400, "wrong")
    assert gate.metrics.refusals.series == {}
    assert gate.metrics.calls.series == {("vendor", "*", "upstream_error", "4xx"): 1}
    assert gate.metrics.upstream_errors.series == {("vendor", "status"): 1}


async def test_connections_that_are_turned_away_are_counted_and_told_once_a_second_by_limit(
    gate: Gatehouse,
) -> None:
    first, server = await gate.line(), gate.door.server
    assert (await first.ask(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"))[0] == 200

    for limit in ("connections_max", "connections_per_address_max"):
        server.wall = replace(WALL, **{limit: 1})
        for _ in range(3):
            line = await gate.line()
            assert (await line.ask(b"GET / HTTP/1.1\r\n\r\n"))[0] in (429, 503)

    assert gate.metrics.refusals.series == {("too_many_connections",): 6}
    told = [(line["event"], line["status"], line["cause"]) for line in gate.lines]
    assert ("connection refused", 503, "connections_max") in told
    assert ("connection refused", 429, "connections_per_address_max") in told
    assert len(told) < 6


async def test_a_hold_that_is_refused_says_what_was_short(gate: Gatehouse) -> None:
    body = {"model": "m", "messages": [], "max_tokens": 10**9}

    status, _, _ = await gate.post(body)

    assert status == 402
    assert gate.metrics.holds_refused.series == {("wallet",): 1}


class Ended(NamedTuple):
    """A call that ended, as far as it is told of."""

    route: str
    record: dict[str, Any]
    code: str
    spent_s: float

    def tell(self, teller: Teller) -> None:
        live = LiveCall.__new__(LiveCall)  # without the connection that it came by
        live.id_text, live.code, live.failures = "call-1", self.code, []
        live.route = Route(self.route, Model(targets=()), (), ())
        live.began_s, live.asked_s, live.admitted_s, live.sent_s = 1.0, 1.1, 1.2, 1.3
        live.first_byte_s, live.upstream_done_s, live.ended_s = 1.4, 1.5, 1.0 + self.spent_s
        live.record = Record(
            b"1" * 16, member_id="", project_id="", admitted_us=1, price_version="",
            model_target="m", **self.record,
        )  # fmt: skip
        live.attempts = live.record.attempts
        charge = Nanos(live.record.charge)
        teller.ended(live, End(b"1" * 16, 0, "w", EndKind(live.record.kind), charge, b""))


USUAL = Ended(
    "small",
    {
        "organization_id": "o",
        "key_id": "k",
        "operation": "chat/completions",
        "provider": "openai",
        "model_requested": "small",
        "held": NANOS_MAX,
        "outcome": Outcome.SUCCESS,
        "kind": EndKind.SETTLED,
        "charge": 5,
        "usage": {Unit.INPUT: 3},
        "usage_source": Source.REPORTED,
        "attempts": 1,
        "status": 200,
    },
    code="",
    spent_s=1.0,
)
ODD, LONG = 'odd "%d" \\ é', "x" * 9_000
NAMES = st.sampled_from(["openai", "small", ODD, LONG, "unknown"])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "organization_id": NAMES,
    "key_id": NAMES,
    "operation": st.sampled_from(["embeddings", ODD]),
    "provider": NAMES,
    "model_requested": st.sampled_from(["m", "%s", "bearer abc", "\ud800", "é\n", LONG]),
    "held": st.just(0),
    "kind": st.sampled_from([*EndKind]),
    "outcome": st.sampled_from([*Outcome]),
    "charge": st.integers(0, 2),
    "usage": st.dictionaries(st.sampled_from([*Unit][:3]), st.integers(0, 2**62)),
    "usage_source": st.sampled_from([*Source]),
    "attempts": st.integers(0, 2),
    "status": st.sampled_from([0, 299, 429]),
    "stream": st.just(value=True),
    "first_byte_us": st.integers(0, 10**9),
    "flags": st.sampled_from([["unpriced"], ["unknown_field:%d"]]),
}
# Few fields at a time, so that most calls are of a kind that was seen before.
CHANGES = st.lists(
    st.one_of([st.tuples(st.just(name), values) for name, values in FIELDS.items()]), max_size=2
)
CALLS = st.builds(
    lambda route, changes, code, spent_s: Ended(route, USUAL.record | dict(changes), code, spent_s),
    st.sampled_from(["small", "small", ODD, LONG]),
    CHANGES,
    st.sampled_from(["", "wrong", ODD]),
    st.floats(0.5, 1_000),
)


def told(calls: list[Ended], *, remembers: bool) -> tuple[list[Any], list[Any]]:
    """The figures of these calls and their lines; a teller that remembers none tells plainly."""
    metrics, lines = Metrics(), list[bytes]()
    metrics.configure(providers=["openai", ODD, LONG], models=["small", ODD, LONG], process="w")
    log = Lines(lines.append, process="w", wall_s=lambda: 1_767_225_600.25)
    teller = Teller(metrics, log)
    for call in calls:
        call.tell(teller if remembers else Teller(metrics, log))
    figures = [family.series for family in metrics.families()]
    return figures, [list(orjson.loads(line).items()) for line in lines]


@settings(max_examples=300, deadline=None)
@given(st.lists(CALLS, max_size=8))
@example([Ended(LONG, USUAL.record | {"provider": LONG}, "", 1.0)])
def test_a_call_that_ends_like_one_before_is_told_as_if_it_were_the_first(
    calls: list[Ended],
) -> None:
    assert told(calls + calls, remembers=True) == told(calls + calls, remembers=False)


def test_every_field_of_a_line_is_of_its_own_call() -> None:
    other = USUAL.record | {
        "organization_id": "o2",
        "key_id": "k2",
        "model_requested": "small-2",
        "charge": 7,
        "usage": {Unit.INPUT: 4},
        "first_byte_us": 9_000,
    }
    calls = [USUAL, Ended("small", other, code="wrong", spent_s=2.0)]

    assert told(calls, remembers=True) == told(calls, remembers=False)


def test_a_model_that_gets_a_name_by_a_reload_is_other_no_more() -> None:
    metrics = Metrics()
    teller = Teller(metrics, Lines(lambda _: None, process="w", wall_s=lambda: 1e9))
    metrics.configure(providers=["openai"], models=["large"])
    for _ in range(2):
        USUAL.tell(teller)
    metrics.configure(models=["small"])
    for _ in range(3):
        USUAL.tell(teller)
    metrics.configure(models=["large"])
    USUAL.tell(teller)

    assert metrics.charge.series == {("openai", OTHER): 10, ("openai", "small"): 20}
    assert metrics.usage.series[("openai", "small", "input")] == 12
    assert metrics.calls.series == {
        ("openai", OTHER, "success", "2xx"): 2,
        ("openai", "small", "success", "2xx"): 4,
    }


def test_what_a_teller_remembers_is_bounded() -> None:
    lines = list[Any]()
    metrics = Metrics()
    metrics.configure(providers=["openai"], models=["small"])
    log = Lines(lambda line: lines.append(orjson.loads(line)), process="w", wall_s=lambda: 1e9)
    teller = Teller(metrics, log)
    for number in range(KINDS_MAX + 2):
        USUAL._replace(record=USUAL.record | {"status": number}).tell(teller)
    for number in range(WHO_MAX + 2):
        USUAL._replace(record=USUAL.record | {"key_id": f"k{number}"}).tell(teller)

    assert teller.remembered <= KINDS_MAX + WHO_MAX
    assert [line["key"] for line in lines[-WHO_MAX:]] == [f"k{n}" for n in range(2, WHO_MAX + 2)]

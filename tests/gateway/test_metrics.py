"""Counting is exact, and no client can make the metrics grow."""

import re
from dataclasses import fields
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway.credential import Reason
from gateway.metrics import CAUSES, SERIES_MAX, Gauge, Histogram, Metrics
from ledger.record import Outcome
from ledger.usage import Unit

ROOT = Path(__file__).parents[2]


def metrics() -> Metrics:
    made = Metrics()
    made.configure(providers=["openai"], models=["gpt-*", "small"], process="worker-0")
    return made


class TestCounters:
    def test_add_up(self) -> None:
        counter = metrics().charge
        counter.add(("openai", "small"), 5)
        counter.add(("openai", "small"), 2**60)
        assert counter.series == {("openai", "small"): 5 + 2**60}

    def test_without_labels_are_zero_from_the_start(self) -> None:
        assert metrics().epochs.series == {(): 0}

    def test_take_every_outcome_and_unit_there_is(self) -> None:
        made = metrics()
        for outcome in Outcome:
            made.calls.add(("openai", "small", outcome, "2xx"))
        for unit in Unit:
            made.usage.add(("openai", "small", unit), 1)
        shown = [*made.calls.series, *made.usage.series]
        assert not [labels for labels in shown if "other" in labels]


class TestLabels:
    def test_that_nobody_configured_are_other(self) -> None:
        made = metrics()
        for number in range(10_000):
            made.calls.add(("openai", f"invented-{number}", "success", "2xx"))
            made.refusals.add((f"code-{number}",))
        assert made.calls.series == {("openai", "other", "success", "2xx"): 10_000}
        assert made.refusals.series == {("other",): 10_000}

    def test_of_a_removed_model_are_still_what_they_were(self) -> None:
        made = metrics()
        made.charge.add(("openai", "small"), 5)
        made.configure(models=["large"])
        made.charge.add(("openai", "small"), 5)
        made.charge.add(("openai", "large"), 1)
        assert made.charge.series == {("openai", "small"): 10, ("openai", "large"): 1}

    def test_of_one_metric_end_in_other_however_much_is_configured(self) -> None:
        made = metrics()
        names = [f"m{number}" for number in range(SERIES_MAX + 100)]
        made.configure(models=names)
        for name in names:
            made.charge.add(("openai", name), 1)
        assert len(made.charge.series) == SERIES_MAX + 1
        assert made.charge.series["other", "other"] == 100

    def test_are_always_of_a_closed_set_or_configured(self) -> None:
        made = Metrics()
        for family in made.families():
            if isinstance(family, Gauge):
                family.set(1, ("x",) * len(family.labels))
            elif isinstance(family, Histogram):
                family.observe(1, ("x",) * len(family.labels))
            else:
                family.add(("x",) * len(family.labels))
            assert ("other",) * len(family.labels) in family.series, family.name

    def test_hold_every_error_code_of_a_call(self) -> None:
        places = ("gateway/proxy", "gateway/credential.py", "gateway/errors.py", "providers")
        files = [
            file
            for place in places
            for file in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
        ]
        codes = {code for file in files for code in re.findall(r'code="(\w+)"', file.read_text())}
        assert len(codes) > 20
        assert codes - CAUSES == set(), "add them to CAUSES, or they are counted as other"

    def test_hold_every_reason_a_key_is_turned_away(self) -> None:
        assert {*Reason} <= CAUSES


class TestHistograms:
    @given(st.lists(st.integers(0, 10**9), max_size=50))
    def test_put_each_value_into_the_first_bucket_that_holds_it(self, values: list[int]) -> None:
        histogram = Metrics().overhead_seconds
        for value in values:
            histogram.observe(value)
        cells = histogram.series.get((), [0] * (len(histogram.bounds) + 2))
        *counts, above, total = cells
        for place, bound in enumerate(histogram.bounds):
            assert sum(counts[: place + 1]) == sum(value <= bound for value in values)
        assert above == sum(value > histogram.bounds[-1] for value in values)
        assert total == sum(values)


class TestGauges:
    def test_are_what_was_set_last(self) -> None:
        gauge = metrics().stream_backlog
        gauge.set(5, ("3",))
        gauge.set(2, ("3",))
        assert gauge.series == {("3",): 2}


class TestTheTable:
    def test_names_each_metric_once_with_its_unit_last(self) -> None:
        names = [family.name for family in Metrics().families()]
        assert len(names) == len(set(names))
        for family in Metrics().families():
            assert re.fullmatch(r"[a-z][a-z_]+", family.name)
            assert family.name.endswith("_total") == (family.kind == "counter"), family.name
            if isinstance(family, Histogram):
                assert family.name.endswith(("_seconds", "_items"))
                assert list(family.bounds) == sorted(set(family.bounds))

    def test_explains_each_metric(self) -> None:
        assert [family.name for family in Metrics().families() if not family.text] == []

    def test_has_nothing_that_nobody_counts(self) -> None:
        files = [path for path in (ROOT / "gateway").rglob("*.py") if path.name != "metrics.py"]
        text = "".join(path.read_text() for path in files)
        unfed = {one.name for one in fields(Metrics) if f"metrics.{one.name}." not in text}
        assert unfed == set()

    def test_has_no_label_for_a_customer(self) -> None:
        labels = {label for family in Metrics().families() for label in family.labels}
        assert not labels & {"key", "organization", "user", "client", "member", "project", "path"}

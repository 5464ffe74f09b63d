"""The metrics page is right and bounded; health says whether, and to whom it may concern, why."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import load
from gateway.metrics import Metrics
from gateway.observe import observed, page, readiness_of
from gateway.readiness import Readiness, Ready
from gateway.settings import Listener
from gateway.snapshots import Collector, Publisher, Total
from providers.adapter import Secret

TOKEN = "t" * 20
SHIPPED = Path(__file__).parents[2] / "config.yaml"


def publisher(folder: Path, process: str) -> Publisher:
    metrics = Metrics()
    metrics.configure(providers=["openai"], models=["m"])
    return Publisher(
        folder,
        process=process,
        metrics=metrics,
        readiness=Readiness(lambda: 0.0),
    )


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


class TestThePage:
    def test_shows_every_kind_of_metric_as_prometheus_reads_it(self, tmp_path: Path) -> None:
        with publisher(tmp_path, "control") as control:
            metrics = control.metrics
            metrics.charge.add(("openai", "m"), 1_234_567)
            metrics.stream_backlog.set(7, ("3",))
            metrics.overhead_seconds.observe(400)
            metrics.overhead_seconds.observe(2_000_000)
            shown = samples(page(Collector(control).total(1_000.0)))
        charge = (("model", "m"), ("provider", "openai"))
        assert shown["tollgate_charge_nanousd_total", charge] == 1_234_567
        assert shown["tollgate_stream_backlog_entries", (("partition", "3"),)] == 7
        buckets = "tollgate_overhead_seconds_bucket"
        assert shown[buckets, (("le", "0.0003"),)] == 0
        assert shown[buckets, (("le", "0.0005"),)] == 1
        assert shown[buckets, (("le", "1.0"),)] == 1
        assert shown[buckets, (("le", "+Inf"),)] == 2
        assert shown["tollgate_overhead_seconds_count", ()] == 2
        assert shown["tollgate_overhead_seconds_sum", ()] == pytest.approx(2.0004)

    def test_stays_small_whatever_100_000_clients_invent(self, tmp_path: Path) -> None:
        config = load(SHIPPED, {})
        known = [*config.models, *config.providers]
        dice = random.Random(7)  # noqa: S311 - names, not secrets
        with publisher(tmp_path, "control") as control:
            metrics = control.metrics
            metrics.configure(providers=config.providers, models=config.models)
            for _ in range(100_000):
                model = f"{dice.choice(known)}-{dice.getrandbits(64):x}"
                provider = dice.choice([*config.providers, model])
                metrics.calls.add((provider, model, "success", "2xx"))
                metrics.usage.add((provider, model, "input"), 5)
                metrics.call_seconds.observe(dice.randrange(10**7), (provider,))
                metrics.refusals.add((model,))
                metrics.upstream_errors.add((provider, model))
            shown = page(Collector(control).total(1_000.0))
        assert len(samples(shown)) <= 2_000
        assert len(shown) <= 300_000
        assert shown.count(b"other") > 0


class TestReadiness:
    @pytest.mark.parametrize(
        ("control", "workers", "wanted"),
        [
            (True, {"w-0": (1_000.0, True)}, True),
            (True, {"w-0": (1_000.0, False), "w-1": (1_000.0, True)}, True),
            (True, {"w-0": (1_000.0, False)}, False),
            (True, {"w-0": (990.0, True)}, False),
            (False, {"w-0": (1_000.0, True)}, False),
            (True, {}, False),
        ],
    )
    def test_needs_the_collector_and_one_worker_that_was_heard_of_lately(
        self, *, control: bool, workers: dict[str, tuple[float, bool]], wanted: bool
    ) -> None:
        total = Total([])
        total.ready["control"] = (1_000.0, Ready(ready=control))
        for name, (at_s, ready) in workers.items():
            total.ready[name] = (at_s, Ready(ready=ready))
        is_ready, said = readiness_of(total, own="control", now_s=1_000.0)
        assert is_ready is wanted
        assert set(said) == {"control", *workers}


class TestTheListener:
    @pytest.fixture
    async def stack(self) -> AsyncIterator[AsyncExitStack]:
        async with AsyncExitStack() as entered:
            yield entered

    async def start(
        self, stack: AsyncExitStack, folder: Path, *, token: str | None = None
    ) -> tuple[Publisher, Publisher, aiohttp.ClientSession]:
        control = stack.enter_context(publisher(folder, "control"))
        worker = stack.enter_context(publisher(folder, "w-0"))
        control.readiness.expect("postgres")
        worker.publish(1_000.0)
        listener = Listener(port=0, token=None if token is None else Secret(token))
        port = await stack.enter_async_context(
            observed(listener, collector=Collector(control), own="control", wall_s=lambda: 1_000.0)
        )
        session = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        return control, worker, await stack.enter_async_context(session)

    async def test_tells_whether_and_why_calls_are_served(
        self, stack: AsyncExitStack, tmp_path: Path
    ) -> None:
        control, _, session = await self.start(stack, tmp_path)
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            said = await answer.json()
            assert said["processes"]["control"]["checks"] == {"postgres": "starting"}
        control.readiness.good("postgres")
        async with session.get("/readyz") as answer:
            assert (answer.status, (await answer.json())["ready"]) == (200, True)

    async def test_is_healthy_whatever_its_dependencies_are(
        self, stack: AsyncExitStack, tmp_path: Path
    ) -> None:
        _, _, session = await self.start(stack, tmp_path)
        async with session.get("/healthz") as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})

    async def test_shows_metrics_of_all_processes(
        self, stack: AsyncExitStack, tmp_path: Path
    ) -> None:
        control, worker, session = await self.start(stack, tmp_path)
        for one in (control, worker):
            one.metrics.epochs.add()
        worker.publish(1_000.0)
        async with session.get("/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            shown = samples(await answer.read())
        assert shown["tollgate_epochs_total", ()] == 2
        assert ("tollgate_process_cpu_seconds", (("process", "w-0"),)) in shown

    @pytest.mark.parametrize("given", [None, "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}"])
    async def test_with_a_token_only_who_has_it_sees_metrics_and_reasons(
        self, stack: AsyncExitStack, tmp_path: Path, given: str | None
    ) -> None:
        _, _, session = await self.start(stack, tmp_path, token=TOKEN)
        headers = {} if given is None else {"Authorization": given}
        async with session.get("/metrics", headers=headers) as answer:
            assert answer.status == 401
        async with session.get("/readyz", headers=headers) as answer:
            assert (answer.status, await answer.json()) == (503, {"ready": False})
        trusted = {"Authorization": f"Bearer {TOKEN}"}
        async with session.get("/metrics", headers=trusted) as answer:
            assert answer.status == 200
        async with session.get("/readyz", headers=trusted) as answer:
            assert "processes" in await answer.json()

"""The listener for operators: /metrics, /healthz and /readyz of all processes together.

It reads what the processes published and asks nobody anything, so that being looked at costs
nothing and a dead dependency cannot make it hang.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector as PageCollector

from gateway.listening import listening
from gateway.metrics import Histogram
from gateway.readiness import Ready
from gateway.settings import Listener
from gateway.snapshots import Collector, Figures, Total

PREFIX = "tollgate_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SILENT_S = 5.0  # a process publishes once a second; one that has not for this long hangs


def page(total: Total) -> bytes:
    """The metrics page in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(total))
    return generate_latest(registry)


class _Page(PageCollector):
    def __init__(self, total: Total) -> None:
        self._total = total

    def collect(self) -> Iterator[Metric]:
        for name, family in self._total.families.items():
            series = self._total.series[name]
            if not series:
                continue
            shown = PREFIX + name
            # The format's own rule: the type is declared without _total, the samples have it.
            metric = Metric(shown.removesuffix("_total"), family.text, family.kind)
            for labels, figures in sorted(series.items()):
                named = dict(zip(family.labels, labels, strict=True))
                if isinstance(family, Histogram):
                    _add_buckets(metric, family, named, figures)
                else:
                    metric.add_sample(shown, named, figures[0])
            yield metric


def _add_buckets(
    metric: Metric, family: Histogram, named: dict[str, str], figures: Figures
) -> None:
    unit = 1_000_000 if family.name.endswith("_seconds") else 1
    *counts, summed = figures
    below: float = 0
    bounds = [str(bound / unit) for bound in family.bounds]
    for bound, count in zip([*bounds, "+Inf"], counts, strict=True):
        below += count
        metric.add_sample(f"{metric.name}_bucket", {**named, "le": bound}, below)
    metric.add_sample(f"{metric.name}_count", named, below)
    metric.add_sample(f"{metric.name}_sum", named, summed / unit)


def readiness_of(total: Total, *, own: str, now_s: float) -> tuple[bool, dict[str, Ready]]:
    """Whether calls are served, with each process's checks: `own` must be ready, and one other."""
    said = {}
    for process, (at_s, ready) in sorted(total.ready.items()):
        silent_s = now_s - at_s
        if process != own and silent_s > _SILENT_S:
            why = f"not heard of for {silent_s:.0f} s"
            said[process] = Ready(ready=False, checks={**ready.checks, "process": why})
        else:
            said[process] = ready
    others = [ready.ready for process, ready in said.items() if process != own]
    return said[own].ready and any(others), said


class _Answers:
    def __init__(
        self, listener: Listener, *, collector: Collector, own: str, wall_s: Callable[[], float]
    ) -> None:
        self._token = listener.token
        self._collector, self._own, self._wall_s = collector, own, wall_s

    async def metrics(self, request: web.Request) -> web.Response:
        if not self._is_trusted(request):
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        total = self._collector.total(self._wall_s())
        # A page of thousands of lines takes a while, and the flusher lives in this process, too.
        text = await asyncio.to_thread(page, total)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def healthz(self, _request: web.Request) -> web.Response:
        """That this answers is all there is to say: a sick dependency is no cause for a restart."""
        return _json(200, {"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Anybody may know whether; only who has the token, why."""
        total = self._collector.total(self._wall_s())
        is_ready, said = readiness_of(total, own=self._own, now_s=self._wall_s())
        body: dict[str, object] = {"ready": is_ready}
        if self._is_trusted(request):
            body["processes"] = {
                name: {"ready": ready.ready, "checks": ready.checks} for name, ready in said.items()
            }
        return _json(200 if is_ready else 503, body)

    def _is_trusted(self, request: web.Request) -> bool:
        if self._token is None:
            return True
        given = request.headers.get("Authorization", "")
        wanted = f"Bearer {self._token.reveal()}"
        return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _json(status: int, body: object) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        content_type="application/json",
    )


@asynccontextmanager
async def observed(
    listener: Listener, *, collector: Collector, own: str, wall_s: Callable[[], float]
) -> AsyncIterator[int]:
    """Serves until the block is left; gives the port. `own` is the collecting process's name."""
    answers = _Answers(listener, collector=collector, own=own, wall_s=wall_s)
    application = web.Application(client_max_size=0)
    application.router.add_get("/metrics", answers.metrics)
    application.router.add_get("/healthz", answers.healthz)
    application.router.add_get("/readyz", answers.readyz)
    async with listening(listener, application, backlog=64) as port:
        yield port

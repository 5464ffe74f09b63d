"""Calls per second through one core: the gateway, beside nginx and others, in the same run.

The gateway's worker has a core for itself, and so has each of the others in its turn; the load, the
upstream, Valkey, Postgres and the control process share what is left. Every call through the
gateway is fully metered.
"""

import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load import Headers, Loaded, generator, load
from benchmarks.nginx import Nginx
from benchmarks.options import Options, Outcome
from benchmarks.peers import litellm, portkey
from benchmarks.processes import Cores, cpu_s, medians, per_call_us
from benchmarks.profile import STACKS, profiled, shares
from benchmarks.stand import Stand

BACKLOG_S_MAX = 2.0
DIRECT_PER_NGINX_MIN = 1.5
_BUSY_MIN = 0.95  # below it, the one measured was not what limited the calls
_WARM_S = 2.0
_PROFILED = 80  # functions shown


class _Rival(NamedTuple):
    """Something to send calls through."""

    url: str
    pids: tuple[int, ...]
    headers: list[Headers] = [{}]  # noqa: RUF012 - nobody changes it


class _Round(NamedTuple):
    """One measurement."""

    rps: float
    busy: float  # the share of its core that the one measured used
    cpu_us_per_call: float  # of the one measured
    loaded: Loaded


async def measure(options: Options, folder: Path) -> Outcome:
    """Calls per second of each, and what each process of the gateway spends on a call."""
    cores = options.cores
    async with AsyncExitStack() as stack:
        upstream = stack.enter_context(Nginx.answering(folder))
        await upstream.until_ready()
        proxy = stack.enter_context(Nginx.passing(folder, upstream, cores=cores.measured))
        await proxy.until_ready()
        started = Stand.started(
            folder / "gateway",
            vendor_port=upstream.port,
            cores=cores,
            organizations=options.organizations,
        )
        stand = await stack.enter_async_context(started)
        rivals = {
            "nginx": _Rival(proxy.url, (proxy.pid,)),
            "direct": _Rival(upstream.url, (upstream.pid,)),
        }
        for name, wanted, peer in (
            ("litellm", options.litellm, litellm),
            ("portkey", options.portkey, portkey),
        ):
            if wanted:
                running = await stack.enter_async_context(
                    peer(options.peers, folder, upstream, cores)
                )
                rivals[name] = _Rival(running.url, running.pids, [running.headers])
        return await _compared(options, stand, upstream, rivals)


async def _compared(
    options: Options, stand: Stand, upstream: Nginx, rivals: dict[str, _Rival]
) -> Outcome:
    gateway = _Rival(stand.url, (stand.worker,), stand.headers)
    calls = 0
    for rival in (gateway, *rivals.values()):
        warm = await _round(rival, options, seconds=min(_WARM_S, options.seconds))
        calls += warm.loaded.requests if rival is gateway else 0
    await stand.until_flushed()
    rounds: dict[str, list[_Round]] = {name: [] for name in ("gateway", *rivals)}
    spent: list[dict[str, float]] = []
    backlogs_s: list[float] = []
    for _ in range(options.repeats):
        before = _cpu(stand, upstream)
        rounds["gateway"].append(one := await _round(gateway, options))
        calls += one.loaded.requests
        backlogs_s.append(max(0.0, (calls - await stand.flushed()) / one.rps))
        # Their CPU counts until the last record of these calls is in Postgres.
        await stand.until_flushed()
        cpu = per_call_us(before, _cpu(stand, upstream), one.loaded.requests)
        load_us = one.loaded.cpu_s * 1e6 / max(1, one.loaded.requests)
        spent.append({**cpu, "load": round(load_us, 1)})
        for name, rival in rivals.items():
            rounds[name].append(await _round(rival, options))
    profile = {} if options.profile is None else await _profile(options, stand, options.profile)
    records = await stand.flushed()
    rps = {name: statistics.median(one.rps for one in each) for name, each in rounds.items()}
    objections = [
        *_objections(rps, rounds, max(backlogs_s), cores=options.cores),
        *([f"{calls} answers, but {records} records"] if records < calls else []),
    ]
    return Outcome(
        figures={
            **{f"{name}_rps": round(each, 1) for name, each in rps.items()},
            **{
                f"ratio_{name}": round(rps["gateway"] / _of_a_whole_core(each), 4)
                for name, each in rounds.items()
                if name not in ("gateway", "direct", "nginx")
            },
            "ratio_nginx": round(rps["gateway"] / rps["nginx"], 4),  # which uses its core, or else
            "cpu_us_per_call": medians(spent)["worker"],
        },
        details={
            "load": f"{generator()}, {options.connections} connections",
            "organizations": options.organizations,
            "cpu_us_per_call_of": medians(spent),
            "remarks": _remarks(rounds),
            "backlog_s": round(max(backlogs_s), 2),
            "records": records,
            "rounds": {name: [_shown(one) for one in each] for name, each in rounds.items()},
            **profile,
        },
        objections=objections,
    )


async def _round(rival: _Rival, options: Options, *, seconds: float | None = None) -> _Round:
    before_s, began_s = cpu_s(rival.pids), time.monotonic()
    loaded = await load(
        rival.url,
        connections=options.connections,
        seconds=seconds or options.seconds,
        headers=rival.headers,
    )
    took_s, used_s = time.monotonic() - began_s, cpu_s(rival.pids) - before_s
    per_call_us = used_s * 1e6 / max(1, loaded.requests)
    return _Round(loaded.rps, used_s / took_s, per_call_us, loaded)


async def _profile(options: Options, stand: Stand, folder: Path) -> dict[str, dict[str, float]]:
    """Where the worker's time goes: the share of each function with all it called."""
    gateway = _Rival(stand.url, (stand.worker,), stand.headers)
    async with profiled(stand.worker, folder, seconds=options.seconds):
        await _round(gateway, options, seconds=options.seconds + 1)
    await stand.until_flushed()
    found = sorted(shares((folder / STACKS).read_text()), key=lambda share: -share.inclusive)
    return {"profile": {one.function: round(one.inclusive, 3) for one in found[:_PROFILED]}}


def _cpu(stand: Stand, upstream: Nginx) -> dict[str, float]:
    return {**stand.cpu_s(), "upstream": cpu_s([upstream.pid])}


def _objections(
    rps: dict[str, float], rounds: dict[str, list[_Round]], backlog_s: float, *, cores: Cores
) -> list[str]:
    """Why this run does not count; nothing if it does."""
    found = []
    if not cores.are_apart:
        found.append("there is one core only: nothing was measured by itself")
    if rps["direct"] < DIRECT_PER_NGINX_MIN * rps["nginx"]:
        found.append(
            f"direct is below {DIRECT_PER_NGINX_MIN} x nginx: load or upstream is too slow"
        )
    if backlog_s > BACKLOG_S_MAX:
        found.append(f"the flusher was {backlog_s:.1f} s of records behind at the end")
    for name in ("gateway", "nginx", "direct"):
        refused = sum(one.loaded.refused + one.loaded.failed for one in rounds[name])
        if refused:
            found.append(f"{refused} calls of {name} were refused or failed")
    if (busy := _busy(rounds["nginx"])) < _BUSY_MIN:
        found.append(f"nginx used {busy:.0%} of its core: something else was the limit")
    return found


def _remarks(rounds: dict[str, list[_Round]]) -> list[str]:
    """What a reader has to know of the figures of the other gateways, and of ours."""
    found = []
    for name, each in rounds.items():
        if name in ("nginx", "direct"):
            continue
        refused = sum(one.loaded.refused + one.loaded.failed for one in each)
        if refused:
            calls = sum(one.loaded.requests for one in each)
            found.append(f"{refused} of {calls} calls of {name} failed or took over 2 s")
        if (busy := _busy(each)) < _BUSY_MIN:
            found.append(f"{name} used {busy:.0%} of its core: it could be faster than shown")
    return found


def _of_a_whole_core(rounds: list[_Round]) -> float:
    """Calls/s of a peer as if it had used its core up: what it left unused is not our merit."""
    return statistics.median(one.rps / min(1.0, max(0.01, one.busy)) for one in rounds)


def _busy(rounds: list[_Round]) -> float:
    return statistics.median(one.busy for one in rounds)


def _shown(one: _Round) -> dict[str, Any]:
    return {
        "rps": round(one.rps),
        "busy": round(one.busy, 3),
        "cpu_us_per_call": round(one.cpu_us_per_call, 1),
        "p50_us": round(one.loaded.p50_us),
        "p99_us": round(one.loaded.p99_us),
    }

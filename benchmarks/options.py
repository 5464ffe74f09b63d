"""What a run of the benchmarks is asked for, and what a benchmark answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import Cores

# The keys of the JSON, in the order of the table; null where a benchmark was not run.
FIGURES = {
    "gateway_rps": "calls/s, metered, one core",
    "nginx_rps": "calls/s of nginx proxy_pass, one core",
    "direct_rps": "calls/s without anything between",
    "ratio_nginx": "gateway / nginx",
    "litellm_rps": "calls/s of LiteLLM, one core",
    "ratio_litellm": "gateway / LiteLLM",
    "portkey_rps": "calls/s of Portkey, one core",
    "ratio_portkey": "gateway / Portkey",
    "cpu_us_per_call": "CPU-µs of the worker per call",
    "added_p50_us": "µs added to a call, one connection, p50",
    "added_p99_us": "the same, p99",
    "streams": "open streams of 20 chunks/s",
    "chunk_added_p99_ms": "ms added to a chunk, p99",
    "rss_per_stream_kb": "kB of the worker's memory per stream",
    "pairs_per_s": "hold + settle pairs/s, one process",
    "records_per_s": "records/s into Postgres, one flusher",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long, how often, how many, and beside whom."""

    seconds: float = 4.0  # of one measurement
    repeats: int = 3  # of each; the median counts
    connections: int = 64
    organizations: int = 1  # whose keys are used in turn
    streams: int = 500
    records: int = 40_000  # of one flush
    litellm: bool = False
    portkey: bool = False
    peers: Path = Path.home() / ".cache" / "tollgate-peers"  # where they are installed
    profile: Path | None = None  # a folder for the worker's profile under load
    cores: Cores = field(default_factory=Cores.split)  # before anything is pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one benchmark found. A run with objections does not count."""

    figures: Mapping[str, float | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    objections: Sequence[str] = ()

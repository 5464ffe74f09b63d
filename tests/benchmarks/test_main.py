"""Every benchmark runs, and says what it is asked for: no time is judged here."""

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.options import FIGURES

_TINY = ("--seconds", "0.2", "--repeats", "1", "--connections", "2", "--streams", "3")
_FOUND = {
    "throughput": {
        *("gateway_rps", "nginx_rps", "direct_rps", "ratio_nginx", "cpu_us_per_call"),
    },
    "overhead": {"added_p50_us", "added_p99_us"},
    "streaming": {"streams", "chunk_added_p99_ms", "rss_per_stream_kb"},
    "ledger": {"pairs_per_s"},
    "flush": {"records_per_s"},
    "journal": set(),
    "upstream": set(),
}


@pytest.mark.scenario
@pytest.mark.parametrize("name", _FOUND)
def test_a_benchmark_tells_its_own_figures_and_null_for_the_others(name: str) -> None:
    told = _run(name)

    assert {key for key in FIGURES if told[key] is not None} == _FOUND[name]
    assert told["details"][name]
    assert told["machine"]["python"]
    assert told["counts"] is not bool(told["objections"])
    if name == "throughput":
        assert_processes_are_told(told["details"][name])


def assert_processes_are_told(details: dict[str, Any]) -> None:
    """What each process spent on a call, and how far the books were behind."""
    roles = {"worker", "control", "valkey", "postgres", "upstream", "load"}
    assert details["cpu_us_per_call_of"].keys() == roles
    assert details["backlog_s"] >= 0
    assert details["records"] > 0


def test_the_keys_are_those_that_were_promised() -> None:
    assert [*FIGURES] == [
        *("gateway_rps", "nginx_rps", "direct_rps", "ratio_nginx"),
        *("litellm_rps", "ratio_litellm", "portkey_rps", "ratio_portkey"),
        *("cpu_us_per_call", "added_p50_us", "added_p99_us"),
        *("streams", "chunk_added_p99_ms", "rss_per_stream_kb", "pairs_per_s", "records_per_s"),
    ]


def _run(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--json", "--records", "200", *_TINY],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told

"""Run benchmarks and print what they found: python -m benchmarks NAME... [--json].

Everything is started from here, measured and stopped again. See benchmarks/README.md.
"""

import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import (
    flush,
    journal,
    ledger,
    machine,
    overhead,
    streaming,
    throughput,
    upstream,
)
from benchmarks.options import FIGURES, Options, Outcome
from benchmarks.processes import Others, staying_on

Measure = Callable[[Options, Path], Awaitable[Outcome]]
BENCHMARKS: dict[str, Measure] = {
    "throughput": throughput.measure,
    "overhead": overhead.measure,
    "streaming": streaming.measure,
    "ledger": ledger.measure,
    "flush": flush.measure,
    # Parts of the above, for those who work on them.
    "journal": journal.measure,
    "upstream": upstream.measure,
}
_DEFAULTS = Options()
_OTHERS_MAX = 0.1  # cores; a machine without anybody else uses less than this for itself


@click.command(help=__doc__)
@click.argument("names", nargs=-1, required=True, type=click.Choice([*BENCHMARKS]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--seconds", default=_DEFAULTS.seconds, show_default=True, help="Of a measurement.")
@click.option("--repeats", default=_DEFAULTS.repeats, show_default=True, help="Median of so many.")
@click.option("--connections", default=_DEFAULTS.connections, show_default=True)
@click.option(
    "--organizations", default=_DEFAULTS.organizations, show_default=True, help="In turn."
)
@click.option("--streams", default=_DEFAULTS.streams, show_default=True)
@click.option("--records", default=_DEFAULTS.records, show_default=True, help="Of one flush.")
@click.option("--litellm", is_flag=True, help="LiteLLM beside; installed in its own venv.")
@click.option("--portkey", is_flag=True, help="Portkey's gateway beside; needs Node.js and npm.")
@click.option("--peers", type=click.Path(path_type=Path), default=_DEFAULTS.peers)
@click.option("--profile", type=click.Path(path_type=Path), help="Folder for the worker's profile.")
def main(names: Sequence[str], *, as_json: bool, **options: Any) -> None:
    """Measure, print, and say whether the run counts."""
    before = machine.facts()
    outcomes = uvloop.run(_measured(names, Options(**options)))
    result = collected(outcomes, before)
    if as_json:
        print(json.dumps(result))
    else:
        _show(result)
    sys.exit(0)


async def _measured(names: Sequence[str], options: Options) -> dict[str, Outcome]:
    outcomes = {}
    with staying_on(options.cores.rest):
        for name in names:
            others = Others()
            with tempfile.TemporaryDirectory(prefix="tollgate-benchmark-") as folder:
                outcome = await BENCHMARKS[name](options, Path(folder))
            outcomes[name] = _judged(outcome, others.cores())
    return outcomes


def _judged(outcome: Outcome, others: float) -> Outcome:
    """The outcome, which does not count if others were at work beside us."""
    objections = list(outcome.objections)
    if others > _OTHERS_MAX:
        objections.append(f"others used {others:.2f} cores of this machine meanwhile")
    details = {**outcome.details, "others_cores": round(others, 2)}
    return replace(outcome, details=details, objections=objections)


def collected(outcomes: dict[str, Outcome], facts: dict[str, str]) -> dict[str, Any]:
    """What is printed: every figure, the details of each benchmark, and what speaks against it."""
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    for outcome in outcomes.values():
        figures |= outcome.figures
    objections = {name: list(one.objections) for name, one in outcomes.items() if one.objections}
    return {
        **figures,
        "counts": not objections,
        "objections": objections,
        "details": {name: dict(outcome.details) for name, outcome in outcomes.items()},
        "machine": facts,
    }


def _show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title="Tollgate, measured", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("what it is")
    for key, meaning in FIGURES.items():
        if result[key] is not None:
            table.add_row(key, f"{result[key]:,}", meaning)
    console.print(table)
    for name, details in result["details"].items():
        console.print(f"[bold]{name}[/bold]")
        for key, value in details.items():
            console.print(f"  {key}: {json.dumps(value)}", highlight=False, markup=False)
    console.print("[bold]machine[/bold]")
    console.print(f"  {json.dumps(result['machine'])}", highlight=False, markup=False)
    for name, said in result["objections"].items():
        for objection in said:
            console.print(f"[red]does not count[/red] {name}: {objection}", highlight=False)


if __name__ == "__main__":
    main()

"""A changed file is applied as a whole or not at all, and never while it is being written."""

import ast
import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeGuard

import pytest

from gateway.config import load
from gateway.metrics import Metrics
from gateway.reload import FIXED, ConfigFile, Result, changes
from gateway.settings import Config

GOOD = "limits: {headers_max: 50}\n"
ROOT = Path(__file__).parents[2]
MARK = "(restart)"
# Where what runs already learns of a new configuration, in the modules that put processes together.
LEARN = {"app.py": ["configure"], "control.py": ["configure", "_reprice"]}


class Setup:
    def __init__(self, folder: Path, text: str = "") -> None:
        self.path = folder / "config.yaml"
        self.write(text)
        self.metrics = Metrics()
        self.applied: list[Config] = []
        self.file = ConfigFile(self.path, {}, config=load(self.path, {}), metrics=self.metrics)
        self.file.subscribe(self.applied.append)

    def write(self, text: str) -> None:
        draft = self.path.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(self.path)

    def reloads(self) -> dict[str, int]:
        return {label: count for (label,), count in self.metrics.config_reloads.series.items()}


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def test_a_changed_file_is_applied_once_it_has_settled(setup: Setup) -> None:
    assert await setup.file.poll() is Result.UNCHANGED
    setup.write(GOOD)
    assert await setup.file.poll() is Result.UNCHANGED
    assert await setup.file.poll() is Result.APPLIED
    assert await setup.file.poll() is Result.UNCHANGED
    assert [config.limits.headers_max for config in setup.applied] == [50]
    assert setup.file.config is setup.applied[0]
    assert setup.reloads() == {"applied": 1}


async def test_a_change_between_the_first_reading_and_the_watching_is_not_missed(
    setup: Setup,
) -> None:
    config = load(setup.path, {})
    setup.write(GOOD)
    file = ConfigFile(setup.path, {}, config=config, metrics=setup.metrics)
    assert [await file.poll() for _ in range(3)] == [
        Result.UNCHANGED,
        Result.APPLIED,
        Result.UNCHANGED,
    ]


async def test_half_a_file_is_not_read(setup: Setup) -> None:
    for text in ("limits: {headers_max: 5", "limits: {headers_max: 50", GOOD):
        setup.path.write_text(text)
        assert await setup.file.poll() is Result.UNCHANGED
    assert await setup.file.poll() is Result.APPLIED


async def test_a_file_with_a_mistake_changes_nothing(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    before = setup.file.config
    setup.write("limits: {headers_max: 50}\ncredits: {per_usd: 0}\n")
    assert await setup.file.reload() is Result.REJECTED
    assert setup.file.config is before
    assert (setup.applied, setup.reloads()) == ([], {"rejected": 1})
    [record] = caplog.records
    assert record.getMessage() == "configuration rejected, the old one stays"
    assert "line 2: credits.per_usd" in str(vars(record)["mistakes"])


async def test_a_rejected_file_is_not_read_again_until_it_changes(setup: Setup) -> None:
    setup.write("limits: {headers_max: x}")
    assert [await setup.file.poll() for _ in range(4)] == [
        Result.UNCHANGED,
        Result.REJECTED,
        Result.UNCHANGED,
        Result.UNCHANGED,
    ]


async def test_a_file_that_is_away_for_a_moment_changes_nothing(setup: Setup) -> None:
    text = setup.path.read_text()
    setup.path.unlink()
    assert [await setup.file.poll() for _ in range(3)] == [Result.UNCHANGED] * 3
    setup.write(text)
    assert [await setup.file.poll() for _ in range(2)] == [Result.UNCHANGED] * 2
    assert setup.reloads() == {}


async def test_a_link_that_is_turned_to_another_file_is_a_change(tmp_path: Path) -> None:
    for name, text in (("one", ""), ("two", GOOD)):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "config.yaml"
    link.symlink_to("one")
    file = ConfigFile(link, {}, config=load(link, {}), metrics=Metrics())
    link.unlink()
    link.symlink_to("two")
    assert [await file.poll() for _ in range(2)] == [Result.UNCHANGED, Result.APPLIED]


async def test_what_needs_a_restart_keeps_its_value_and_is_told(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    before = setup.file.config
    setup.write(f"ledger: {{partitions: 8}}\nauth: {{pepper: {'0123456789abcdef' * 2}}}\n{GOOD}")
    assert await setup.file.reload() is Result.APPLIED
    now = setup.file.config
    assert (now.ledger, now.auth.pepper) == (before.ledger, None)
    assert now.limits.headers_max == 50
    [record] = [record for record in caplog.records if "restart" in record.getMessage()]
    assert vars(record)["settings"] == ["ledger.partitions", "auth.pepper"]
    assert "ppp" not in str(vars(record))


async def test_a_part_that_fails_does_not_keep_the_others_from_the_news(setup: Setup) -> None:
    def fail(_config: Config) -> None:
        raise RuntimeError("boom")

    file = ConfigFile(setup.path, {}, config=setup.file.config, metrics=setup.metrics)
    heard: list[Config] = []
    file.subscribe(fail)
    file.subscribe(heard.append)
    setup.write(GOOD)
    assert await file.reload() is Result.APPLIED
    assert heard == [file.config]


async def test_a_new_model_is_routed_after_the_change(setup: Setup) -> None:
    assert setup.file.config.route("m") is None
    setup.write(
        "providers: {own: {kind: custom, base_url: https://a.example}}\n"
        "models: {m: {targets: [{provider: own, model: m}]}}\n"
    )
    await setup.file.reload()
    assert setup.file.config.route("m") is not None


async def test_asked_by_a_signal_it_reads_at_once(setup: Setup) -> None:
    heard = asyncio.Event()
    setup.file.subscribe(lambda _config: heard.set())
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(setup.file.watch())
        signalled = asyncio.Event()
        heeding = group.create_task(setup.file.heed(signalled))
        setup.write(GOOD)
        signalled.set()
        async with asyncio.timeout(5):
            await heard.wait()
        watching.cancel()
        heeding.cancel()
    assert not signalled.is_set()
    assert setup.file.config.limits.headers_max == 50


def test_changes_are_named_by_their_paths_and_secrets_are_compared(tmp_path: Path) -> None:
    def config(key: str, extra: str = "") -> Config:
        path = tmp_path / "config.yaml"
        path.touch(mode=0o600)
        path.write_text(
            f"providers: {{own: {{kind: custom, base_url: https://a.example, api_key: {key}}}}}\n"
            + extra
        )
        return load(path, {})

    assert changes(config("k1"), config("k1")) == []
    assert changes(config("k1"), config("k2")) == ["providers.own.api_key"]
    assert changes(config("k1"), config("k1", GOOD)) == ["limits.headers_max"]


def test_config_yaml_marks_what_waits_for_a_restart_and_nothing_else() -> None:
    shown = (ROOT / "config.yaml").read_text().splitlines()
    settings = [line for line in shown if line and not line.startswith("#")]

    marked = [line.partition(":")[0] for line in settings if MARK in line]

    assert sorted(marked) == sorted(FIXED)


@pytest.mark.parametrize("module", LEARN)
def test_what_a_process_is_built_with_waits_for_a_restart_or_is_learned_anew(module: str) -> None:
    tree = ast.parse((ROOT / "gateway" / module).read_text())
    functions = {
        each.name: each
        for each in ast.walk(tree)
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    learned = {
        path for name in _called(LEARN[module], functions) for path in _read(functions[name])
    }

    kept = {path for path in _read(tree) if path.partition(".")[0] not in FIXED}

    assert kept - learned == set(), "mark it (restart) in config.yaml and in FIXED, or apply it"
    assert learned


def _called(names: list[str], functions: Mapping[str, ast.AST]) -> set[str]:
    """These functions, and all of the same module that they lead to."""
    found, left = set[str](), list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [each.id for each in ast.walk(functions[name]) if _is_one(each, functions)]
    return found


def _is_one(node: ast.AST, functions: Mapping[str, ast.AST]) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and node.id in functions


def _read(tree: ast.AST) -> Iterator[str]:
    """The settings that are read of a `config`, as paths: "limits.headers_max"."""
    sections = {each.name for each in fields(Config)}
    for node in ast.walk(tree):
        path = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        of, found, rest = path.rpartition("config.")
        is_kept = found and not of.endswith("terms.")  # those of the moment are replaced
        if is_kept and rest.partition(".")[0] in sections:
            yield rest

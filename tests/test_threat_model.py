"""THREAT_MODEL.md names for each threat a test that is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "THREAT_MODEL.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


def _functions(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if hasattr(inner, "name")}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return found


def test_every_test_that_is_named_exists() -> None:
    missing = [
        f"{file}::{name}"
        for file, name in NAMED.findall(PAGE)
        if not (ROOT / file).is_file() or name not in _functions(ROOT / file)
    ]

    assert missing == []


def test_every_threat_names_its_test() -> None:
    rows = [line for line in PAGE.partition("## Threats")[2].splitlines() if line.startswith("|")]
    threats = [line for line in rows if not line.startswith(("| threat |", "|---"))]

    assert [line for line in threats if not NAMED.search(line)] == []
    assert len(threats) >= 25


def test_the_page_can_be_read_at_one_sitting() -> None:
    assert len(PAGE.splitlines()) <= 200

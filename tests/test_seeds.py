"""docs/seeds.md: every row that was asked for stands there once, and the tests that it names exist.

A row without a test says what is missing, and is counted here; the count may only shrink.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "seeds.md"

# Every row, by the letter of its group: what is between two numbers, and what else there is.
ROWS = [
    *("O1", "O2", "O3", "O4", "O5", "O6", "O7", "O9"),  # O8 is the console's
    *(f"O{number}" for number in range(10, 16)),
    *(f"R{number}" for number in range(1, 11)),
    *(f"I{number}" for number in range(1, 5)),
    *(f"K{number}" for number in range(1, 9)),
    *(f"C{number}" for number in range(1, 13)),
    "C12b",
    *("C13", "C14", "C15"),
    *(f"A{number}" for number in range(1, 7)),
    *(f"T{number}" for number in range(1, 4)),
    *(f"P{number}" for number in range(1, 5)),
    *(f"J{number}" for number in range(1, 6)),
    *(f"X{number}" for number in range(1, 19)),
]
# What is not there yet. Shrinks.
OPEN: set[str] = set()

_LINE = re.compile(r"^\| (?P<row>[A-Z]\d+b?) \| (?P<what>.+) \| (?P<proof>.+) \|$", re.MULTILINE)
_TEST = re.compile(r"`(?P<path>[^`]+)::(?P<name>[^`]+)`")
_MISSING = re.compile(r"not yet: \S.*")


class Row(NamedTuple):
    """One line of the tables."""

    row: str
    proof: str

    @property
    def tests(self) -> list[tuple[str, str]]:
        """Path and name of each test."""
        return [(found["path"], found["name"]) for found in _TEST.finditer(self.proof)]


def rows() -> list[Row]:
    """All lines of all tables, in their order."""
    return [Row(found["row"], found["proof"]) for found in _LINE.finditer(PAGE.read_text())]


@cache
def names_in(path: str) -> frozenset[str]:
    """The tests of a file, by name; parametrized ones have one."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(file.read_text(), filename=path)
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, functions) and node.name.startswith("test_")
    )


def unknown_tests() -> Iterator[str]:
    """Tests that are named and do not exist."""
    for row in rows():
        for path, name in row.tests:
            if name not in names_in(path):
                yield f"{row.row}: {path}::{name}"


def test_every_row_that_was_asked_for_is_there_once_and_in_order() -> None:
    assert [row.row for row in rows()] == ROWS


def test_every_test_that_a_row_names_exists() -> None:
    assert not list(unknown_tests()), "name the tests as they are called now"


def test_a_row_names_its_tests_and_nothing_else_or_says_what_is_missing() -> None:
    flawed = [
        row.row
        for row in rows()
        if not (_MISSING.fullmatch(row.proof) if not row.tests else is_list(row.proof))
    ]
    assert not flawed


def is_list(proof: str) -> bool:
    """Whether a cell has tests alone."""
    return all(_TEST.fullmatch(one) for one in proof.split("<br>"))


def test_what_is_not_there_yet_is_counted() -> None:
    unproved = {row.row for row in rows() if not row.tests}
    assert unproved == OPEN, "a row that is done leaves OPEN; none comes in"
    print(f"{len(ROWS) - len(OPEN)} of {len(ROWS)} rows proved")

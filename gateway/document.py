"""A YAML document with the environment's overrides in it, every value knowing where it stands.

Scalars stay the text they were written as: what a text means is for the setting's type to say, so
that `4.10` is a model's name where a name is wanted, and no price ever becomes a float.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import yaml

PREFIX = "tollgate_"
_NULL = "tag:yaml.org,2002:null"


class Mistake(NamedTuple):
    """One thing wrong with the configuration, as its author would look for it."""

    line: int  # 0: it is not in the file
    path: str  # "providers.openai.base_url"; "" is the whole
    message: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


@dataclass(frozen=True, slots=True)
class Scalar:
    text: str
    line: int = 0
    is_null: bool = False
    variable: str = ""  # the environment variable it is from; such a text is taken literally


@dataclass(frozen=True, slots=True)
class Listing:
    items: tuple["Node", ...]
    line: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    entries: Mapping[str, "Node"]
    line: int = 0
    key_lines: Mapping[str, int] | None = None

    def line_of(self, key: str) -> int:
        """The line of the key; 0 if it came from the environment."""
        return (self.key_lines or {}).get(key, 0)


Node: TypeAlias = Scalar | Listing | Table
EMPTY = Table({})


def parse(text: str, *, is_file: bool = True) -> tuple[Node, list[Mistake]]:
    """The document of this text, empty if it cannot be read, and what is wrong with it.

    Its texts have lines only if it `is_file`: what stands in a variable stands in no file.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        # Without the error's own excerpt of the file: a secret may stand on that line.
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        return EMPTY, [Mistake(line, "", f"this is not YAML: {error.problem or error.context}")]
    except yaml.YAMLError as error:
        return EMPTY, [Mistake(0, "", f"this is not YAML: {type(error).__name__}")]
    if root is None:
        return EMPTY, []
    reading = _Reading(is_file=is_file)
    return reading.node(root), reading.mistakes


class _Reading:
    """Turns YAML's nodes into ours, each once, however often it is referred to."""

    def __init__(self, *, is_file: bool) -> None:
        self._is_file = is_file
        self.mistakes: list[Mistake] = []
        self._read: dict[int, Node] = {}
        self._open: set[int] = set()

    def node(self, source: yaml.Node) -> Node:
        if id(source) in self._read:
            return self._read[id(source)]
        line = source.start_mark.line + 1
        if id(source) in self._open:
            self.mistakes.append(Mistake(line, "", f"the anchor of line {line} contains itself"))
            return Scalar("", line, is_null=True)
        self._open.add(id(source))
        node = self._converted(source, line)
        self._open.remove(id(source))
        self._read[id(source)] = node
        return node

    def _converted(self, source: yaml.Node, line: int) -> Node:
        if isinstance(source, yaml.SequenceNode):
            return Listing(tuple(self.node(item) for item in source.value), line)
        if isinstance(source, yaml.MappingNode):
            return self._table(source, line)
        is_null = source.tag == _NULL
        return Scalar(str(source.value), line if self._is_file else 0, is_null=is_null)

    def _table(self, source: yaml.MappingNode, line: int) -> Table:
        entries: dict[str, Node] = {}
        key_lines: dict[str, int] = {}
        for key_node, value_node in source.value:
            key, key_line = str(key_node.value), key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(Mistake(key_line, "", "a key must be one word"))
                continue
            if key in entries:
                first = key_lines[key]
                self.mistakes.append(
                    Mistake(
                        key_line, "", f"{key!r} stands here again; it is already on line {first}"
                    )
                )
                continue
            entries[key] = self.node(value_node)
            key_lines[key] = key_line
        return Table(entries, line, key_lines)


def overridden(root: Node, environ: Mapping[str, str], *, sections: Iterable[str]) -> Node:
    """The document with `TOLLGATE_A__B=x` put in place of `a: {b: ...}`.

    A number beyond a list's end adds to it. A variable without `__` counts only if it names one of
    the `sections`: Kubernetes sets TOLLGATE_PORT and the like for a service called tollgate.
    """
    names = set(sections)
    for variable in sorted(environ, key=lambda name: (name.count("__"), name)):
        lowered = variable.lower()
        if not lowered.startswith(PREFIX):
            continue
        steps = lowered.removeprefix(PREFIX).split("__")
        if len(steps) == 1 and steps[0] not in names:
            continue
        text = environ[variable]
        root = _replaced(root, steps, Scalar(text, is_null=not text, variable=variable))
    return root


def _replaced(node: Node, steps: list[str], value: Scalar) -> Node:
    if not steps:
        return value
    step, *rest = steps
    if isinstance(node, Listing) and step.isdecimal():
        place = min(int(step), len(node.items))
        own = node.items[place] if place < len(node.items) else EMPTY
        items = (*node.items[:place], _replaced(own, rest, value), *node.items[place + 1 :])
        return Listing(items, node.line)
    table = node if isinstance(node, Table) else EMPTY
    key = next((key for key in table.entries if _as_in_a_variable(key) == step), step)
    entries = {**table.entries, key: _replaced(table.entries.get(key, EMPTY), rest, value)}
    return Table(entries, table.line, table.key_lines)


def _as_in_a_variable(key: str) -> str:
    """The key as a variable's name can spell it: `gpt-4.1` is `gpt_4_1`."""
    return re.sub(r"[^a-z0-9]", "_", key.lower())

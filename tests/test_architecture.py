"""The rules of the tree that no other tool checks: who imports whom, sizes, names, words, tests.

Each test lists every breach with its file and line, and says what to do about it.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "ledger", "providers")
TREES = (*PACKAGES, "tests", "benchmarks")

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
NESTING_MAX = 4
BANNED_NAMES = {
    *("base", "common", "core", "helper", "helpers", "manager", "managers", "misc"),
    *("util", "utils"),
}

# What a package may import of ours. `providers` knows usage, and nothing else of the ledger.
MAY_IMPORT = {
    "gateway": ("gateway", "ledger", "providers"),
    "providers": ("providers", "ledger.usage"),
    "ledger": ("ledger",),
}
NEVER_TOGETHER = ("gateway.proxy", "gateway.management")

# Modules that compute and touch nothing: the same input gives the same output, anywhere.
PURE = (
    "providers",
    "ledger.admission",
    "ledger.money",
    "ledger.price_data",
    "ledger.pricing",
    "ledger.record",
    "ledger.usage",
)
IMPURE = {
    *("aiohttp", "asyncio", "asyncpg", "http", "multiprocessing", "os", "random", "redis"),
    *("selectors", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "uvloop"),
}

# Tasks that no TaskGroup owns: who waits for them instead. Shrinks.
OWNED_TASKS: dict[str, str] = {
    "ledger/postgres.py": "one attempt at a time; the pool's context cancels and awaits it",
    "gateway/upstream/dialing.py": "callers share one look-up; Dialer.close cancels and awaits it",
}

# Modules whose rules are proved by the tests of another: which. Shrinks.
TESTED_BY: dict[str, str] = {
    "gateway/app.py": "tests/gateway/test_serve.py",
    "gateway/bounds.py": "tests/gateway/test_binding.py",
    "gateway/control.py": "tests/gateway/test_serve.py",
    "gateway/management/challenges.py": "tests/gateway/management/test_passkeys.py",
    "gateway/management/codes.py": "tests/gateway/management/test_second_factor.py",
    "gateway/management/desk.py": "tests/gateway/management/test_tenants.py",
    "gateway/management/top_up_ends.py": "tests/gateway/management/test_top_ups.py",
    "gateway/management/ways.py": "tests/gateway/management/test_passkeys.py",
    "gateway/payments/processor.py": "tests/gateway/payments/test_sandbox.py",
    "gateway/proxy/live.py": "tests/gateway/proxy/test_calls.py",
    "ledger/waiting.py": "tests/ledger/test_lane.py",
}


def _paths(*trees: str) -> list[Path]:
    return sorted(path for tree in trees for path in (ROOT / tree).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@cache
def _imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and full name of everything imported, wherever in the file it is."""
    found = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{_name(path)}:{node.lineno}: write absolute imports"
            for alias in node.names:
                submodule = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = submodule.is_dir() or submodule.with_suffix(".py").exists()
                name = f"{node.module}.{alias.name}" if is_module else node.module
                found.append((node.lineno, name))
    return tuple(found)


def _say_nothing(breaches: Sequence[str], advice: str) -> None:
    __tracebackhide__ = True
    assert not breaches, "\n  ".join([advice, *breaches])


def test_imports_point_down() -> None:
    breaches = [
        f"{_name(path)}:{line} imports {name}"
        for package, allowed in MAY_IMPORT.items()
        for path in _paths(package)
        for line, name in _imports(path)
        if name.split(".")[0] in TREES and not any(_is_in(name, each) for each in allowed)
    ]
    _say_nothing(
        breaches,
        "gateway may import providers and ledger; providers ledger.usage only; ledger itself only:",
    )


def test_proxy_and_management_do_not_know_each_other() -> None:
    one, other = NEVER_TOGETHER
    breaches = [
        f"{_name(path)}:{line} imports {name}"
        for path in _paths("gateway")
        for line, name in _imports(path)
        if (_is_in(_module(path), one) and _is_in(name, other))
        or (_is_in(_module(path), other) and _is_in(name, one))
    ]
    _say_nothing(breaches, "the hot path and the management API meet in the ledger only:")


def test_pure_modules_import_nothing_that_acts() -> None:
    breaches = []
    for path in _paths(*PACKAGES):
        if not any(_is_in(_module(path), pure) for pure in PURE):
            continue
        for line, name in _imports(path):
            top = name.split(".")[0]
            acts = top in IMPURE or (
                top in PACKAGES and not any(_is_in(name, pure) for pure in PURE)
            )
            if acts:
                breaches.append(f"{_name(path)}:{line} imports {name}")
    _say_nothing(breaches, "no I/O, clock or randomness here; take what they give as an argument:")


def test_no_module_imports_itself_by_a_detour() -> None:
    paths = {_module(path): path for path in _paths(*PACKAGES)}
    edges = {
        module: {name for _, name in _imports(path) if name in paths and name != module}
        for module, path in paths.items()
    }
    # Take away what imports nothing that is left, until only cycles are left.
    while free := {module for module, needs in edges.items() if not needs & edges.keys()}:
        edges = {module: needs for module, needs in edges.items() if module not in free}
    cycles = [f"{module} imports {sorted(needs & edges.keys())}" for module, needs in edges.items()]
    _say_nothing(cycles, "an import cycle: move what both need below them, or merge them:")


def test_files_fit_in_the_head() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in _paths(*TREES)}
    breaches = [f"{_name(path)}: {n} lines" for path, n in sizes.items() if n > FILE_LINES_MAX]
    _say_nothing(breaches, f"more than {FILE_LINES_MAX} lines: find the two ideas in it and split:")


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(path: Path) -> Iterator[_Function]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, _Function):
            yield node


def test_functions_fit_on_a_screen() -> None:
    breaches = [
        f"{_name(path)}:{function.lineno} {function.name}: {lines} lines"
        for path in _paths(*TREES)
        for function in _functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
    ]
    _say_nothing(breaches, f"more than {FUNCTION_LINES_MAX} lines: name its parts and split:")


_BLOCKS = (
    *(ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith),
    *(ast.Try, ast.TryStar, ast.Match),
)


def _nesting(node: ast.AST, *, is_else: bool = False) -> int:
    """How deep blocks stand in one another; `elif` is as deep as its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function | ast.ClassDef | ast.Lambda):
            continue  # counts for itself
        elif_ = isinstance(node, ast.If) and [child] == node.orelse and isinstance(child, ast.If)
        deepest = max(deepest, _nesting(child, is_else=elif_))
    return deepest + (isinstance(node, _BLOCKS) and not is_else)


def test_functions_are_not_nested_deep() -> None:
    breaches = [
        f"{_name(path)}:{function.lineno} {function.name}: {depth} deep"
        for path in _paths(*TREES)
        for function in _functions(path)
        if (depth := _nesting(function)) > NESTING_MAX
    ]
    _say_nothing(breaches, f"nested more than {NESTING_MAX} deep: guards first, leaves apart:")


def test_a_module_is_named_after_what_it_is() -> None:
    breaches = [
        _name(path)
        for path in _paths(*TREES)
        if BANNED_NAMES & {*path.relative_to(ROOT).with_suffix("").parts}
    ]
    _say_nothing(breaches, "a name that fits anything says nothing:")


def test_a_module_says_in_one_sentence_what_it_is_for() -> None:
    breaches = []
    for path in _paths(*TREES):
        if path.name == "__init__.py" and not _tree(path).body:
            continue
        first = (ast.get_docstring(_tree(path)) or "").split("\n\n")[0]
        if not first.endswith((".", ":")):
            breaches.append(f"{_name(path)}: {first!r}")
    _say_nothing(breaches, "open with a sentence that says what the module is for:")


def _expected_test(module: Path) -> PurePosixPath:
    relative = PurePosixPath(_name(module))
    return PurePosixPath("tests") / relative.with_name(f"test_{relative.name}")


def _needs_tests(path: Path) -> bool:
    """A module that only declares (no function at all) is proved by those who use it."""
    return path.name not in {"__init__.py", "__main__.py"} and any(_functions(path))


def test_every_module_has_a_test_file() -> None:
    breaches = [
        f"{_name(path)}: write {_expected_test(path)}"
        for path in _paths(*PACKAGES)
        if _needs_tests(path)
        and _name(path) not in TESTED_BY
        and not (ROOT / _expected_test(path)).exists()
    ]
    _say_nothing(breaches, "no test file (or a line in TESTED_BY that says whose tests prove it):")


def test_every_module_is_on_the_map() -> None:
    """By its name, or by that of its folder."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = {PurePosixPath(name) for name in re.findall(r"`([a-z_./]+)`", text)}
    names = {name.name for name in named}
    folders = {PurePosixPath(name) for name in re.findall(r"`([a-z_/]+)/`", text)}
    breaches = [
        _name(path)
        for path in _paths(*MAY_IMPORT)
        if path.name not in names | {"__init__.py"}
        and not folders & {PurePosixPath(_name(path)).parent, PurePosixPath(path.parent.name)}
    ]
    _say_nothing(breaches, "give each a place in ARCHITECTURE.md, What is where")


def test_every_decision_says_what_has_become_of_it() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    unsaid = [page.name for page in pages if "\nStatus: " not in page.read_text()[:200]]
    assert not unsaid


def test_every_exception_is_still_needed() -> None:
    stale = [
        f"{module}: {test}"
        for module, test in TESTED_BY.items()
        if not (ROOT / module).exists()
        or not (ROOT / test).exists()
        or (ROOT / _expected_test(ROOT / module)).exists()
    ]
    stale += [
        module
        for module in OWNED_TASKS
        if not (ROOT / module).exists() or not list(_loose_tasks(ROOT / module))
    ]
    _say_nothing(stale, "an exception that names nothing, or has become unneeded; remove it:")


def test_every_test_file_has_its_module() -> None:
    """`test_auth.py`, and `test_auth_outages.py` where one file is not enough, prove `auth`."""
    breaches = []
    for path in _paths("tests"):
        relative = path.relative_to(ROOT / "tests")
        if not path.name.startswith("test_") or relative.parts[0] not in PACKAGES:
            continue
        words = path.stem.split("_")[1:]
        names = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
        folder = ROOT / relative.parent
        if not any((folder / n).is_dir() or (folder / f"{n}.py").exists() for n in names):
            breaches.append(f"{_name(path)}: no {_name(folder)}/{names[-1]}.py")
    _say_nothing(breaches, "tests mirror the packages:")


def _loose_tasks(path: Path) -> Iterator[str]:
    """Tasks started on anything but a task group, or without a name."""
    for node in ast.walk(_tree(path)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr == "ensure_future":
            yield f"{_name(path)}:{node.lineno} starts a task that nobody owns"
        elif node.func.attr == "create_task":
            owner = ast.unparse(node.func.value)
            if not owner.endswith("group"):
                yield f"{_name(path)}:{node.lineno} {owner} is not a task group called so"
            elif "name" not in {keyword.arg for keyword in node.keywords}:
                yield f"{_name(path)}:{node.lineno} starts a task without a name"


def test_every_task_has_an_owner_that_waits_for_it() -> None:
    breaches = [
        breach
        for path in _paths(*PACKAGES)
        if _name(path) not in OWNED_TASKS
        for breach in _loose_tasks(path)
    ]
    _say_nothing(breaches, "use a TaskGroup (or say in OWNED_TASKS who waits for it):")


def test_nothing_is_patched() -> None:
    breaches = [
        f"{_name(path)}:{node.lineno}"
        for path in _paths("tests", "benchmarks")
        for node in ast.walk(_tree(path))
        if (isinstance(node, ast.arg) and node.arg in {"monkeypatch", "mocker"})
        or (isinstance(node, ast.ImportFrom) and "mock" in (node.module or "").split("."))
    ]
    _say_nothing(breaches, "pass the other thing in instead of patching:")


_SILENCED = re.compile(r"#\s*(?:ruff:\s*)?(noqa|type:\s*ignore)\b(.*)")
_REASONED = re.compile(r"^(?::\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*|\[[\w, -]+\])\W+\w")


def test_a_silenced_tool_is_told_why() -> None:
    breaches = []
    for path in _paths(*TREES):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            silenced = _SILENCED.search(token.string) if token.type == tokenize.COMMENT else None
            if silenced and not _REASONED.match(silenced[2]):
                breaches.append(f"{_name(path)}:{token.start[0]} {token.string}")
    _say_nothing(breaches, "name the rule and, on the same line, the reason:")


def test_types_need_no_imports_of_their_own() -> None:
    breaches = [
        f"{_name(path)}:{node.lineno}"
        for path in _paths(*TREES)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ImportFrom) and "TYPE_CHECKING" in {a.name for a in node.names}
    ]
    _say_nothing(breaches, "there are no import cycles, so nothing to hide from them:")

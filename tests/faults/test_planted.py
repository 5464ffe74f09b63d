"""The tests are tested: each fault of a patch in this folder is planted in a copy, and caught.

A patch names in its first line the test that must fail with it. `make faults` plants them all;
FAULT=drop-the-gate make faults plants one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TREES = ("gateway", "ledger", "providers", "tests", "pyproject.toml")
FEWEST = 20
_FAILED = 1  # what pytest ends with when tests failed; nothing else will do
_ONLY = os.environ.get("FAULT", "")  # noqa: TID251 - chosen by whoever runs the tests
_PATCHES = sorted(HERE.glob("*.patch"))


def git_apply(patch: Path, tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`git apply` in a tree that need not be a repository."""
    return subprocess.run(
        ["git", "apply", *options, str(patch)],  # noqa: S607 - git is where the machine has it
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )


def catcher(patch: Path) -> str:
    """What pytest is given to run."""
    first = patch.read_text().splitlines()[0]
    assert first.startswith("Caught by: "), f"{patch.name} must name its test in the first line"
    test = first.removeprefix("Caught by: ")
    assert "::" in test, f"{patch.name} must name one test: a file may fail for other reasons"
    return test


@pytest.mark.parametrize("patch", _PATCHES, ids=lambda patch: patch.stem)
def test_a_fault_can_still_be_planted(patch: Path) -> None:
    done = git_apply(patch, ROOT, "--check")
    assert done.returncode == 0, f"the code has moved on, renew {patch.name}:\n{done.stderr}"
    assert (ROOT / catcher(patch).partition("::")[0]).exists()


def test_there_are_enough_of_them_and_the_one_asked_for() -> None:
    assert len(_PATCHES) >= FEWEST
    assert not _ONLY or _ONLY in {patch.stem for patch in _PATCHES}


@pytest.mark.fault
@pytest.mark.timeout(300)
@pytest.mark.parametrize("patch", _PATCHES, ids=lambda patch: patch.stem)
def test_a_planted_fault_is_caught(patch: Path, tmp_path: Path) -> None:
    if _ONLY and patch.stem != _ONLY:
        pytest.skip(f"only {_ONLY}")
    for name in TREES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    done = git_apply(patch, tmp_path)
    assert done.returncode == 0, done.stderr
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", catcher(patch)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},  # noqa: TID251 - a child's
    )
    assert ran.returncode == _FAILED, f"{patch.name} was not caught:\n{ran.stdout[-3000:]}"
    failed = [line for line in ran.stdout.splitlines() if line.startswith("FAILED")]
    assert failed, f"{patch.name}: no test failed, it broke down:\n{ran.stdout[-3000:]}"
    print(f"{patch.stem}: {failed[0].split(' - ')[0]}")

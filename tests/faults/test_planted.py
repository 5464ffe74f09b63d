"""The tests are tested: each fault of a patch in this folder is planted in a copy, and caught.

A patch names in its first line the test that must fail with it. In a copy without a fault all of
them pass, or they would prove nothing. `make faults` plants them all; FAULT=drop-the-gate make
faults plants one.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TREES = ("gateway", "ledger", "providers", "tests", "pyproject.toml")
FEWEST = 25
_PASSED, _FAILED = 0, 1  # what pytest ends with when tests failed; nothing else will do
_ONLY = os.environ.get("FAULT", "")  # noqa: TID251 - chosen by whoever runs the tests
_PATCHES = sorted(HERE.glob("*.patch"))


def copied(tree: Path) -> None:
    """Fill a folder with what the tests of a patch run from."""
    for name in TREES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy(source, tree / name)


def tried(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`pytest` in a tree, which imports nothing of this one."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tree)},  # noqa: TID251 - a child's
    )


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
@pytest.mark.timeout(900)
def test_without_a_fault_every_catcher_passes(tmp_path: Path) -> None:
    catchers = {catcher(patch) for patch in _PATCHES if _ONLY in {"", patch.stem}}
    copied(tmp_path)
    ran = tried(tmp_path, *sorted(catchers))
    assert ran.returncode == _PASSED, ran.stdout[-3000:]
    closing = ran.stdout.splitlines()[-1]
    counted = re.search(r"^(\d+) passed in", closing)
    assert counted, f"some were not run: {closing}"
    assert int(counted[1]) >= len(catchers)
    print(f"without a fault, {len(catchers)} catchers: {closing}")


@pytest.mark.fault
@pytest.mark.timeout(300)
@pytest.mark.parametrize("patch", _PATCHES, ids=lambda patch: patch.stem)
def test_a_planted_fault_is_caught(patch: Path, tmp_path: Path) -> None:
    if _ONLY and patch.stem != _ONLY:
        pytest.skip(f"only {_ONLY}")
    copied(tmp_path)
    done = git_apply(patch, tmp_path)
    assert done.returncode == 0, done.stderr
    ran = tried(tmp_path, "-x", catcher(patch))
    assert ran.returncode == _FAILED, f"{patch.name} was not caught:\n{ran.stdout[-3000:]}"
    failed = [line for line in ran.stdout.splitlines() if line.startswith("FAILED")]
    assert failed, f"{patch.name}: no test failed, it broke down:\n{ran.stdout[-3000:]}"
    print(f"{patch.stem}: {failed[0].split(' - ')[0]}")

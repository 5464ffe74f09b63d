"""In a process of a deployment under test: die by SIGKILL at a step, when a file says so.

The product knows nothing of this. Its functions are wrapped as their modules are imported; each
looks, before and after, whether the file names it. The one that renames the file dies: one death.
"""

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.scenarios.crash.points import POINTS, Point

FOLDER = "CRASH_FOLDER"  # the variable that names where the file is
ARMED, STRUCK = "armed", "struck"


def order(point: Point, side: str, nth: int) -> str:
    """What the file says: die on this side of the point, when it is passed for the nth time."""
    return f"{point} {side} {nth}"


def install() -> None:
    """Wrap what is imported from now on, if this process is one that may have to die."""
    folder = os.environ.get(FOLDER)  # noqa: TID251 - a test's
    role = next((word for word in sys.orig_argv if word in ("worker", "control")), "")
    if folder and role:
        death = _Death(Path(folder), role)
        sys.meta_path.insert(0, _Finder([p for p in POINTS if p.role == role], death))


class _Death:
    """Passes by, or the end."""

    def __init__(self, folder: Path, role: str) -> None:
        self._armed, self._struck, self._role = folder / ARMED, folder / STRUCK, role
        self._order, self._passed = "", 0

    def near(self, point: Point, side: str) -> None:
        """This side of the point is passed now."""
        try:
            asked = self._armed.read_text()
        except FileNotFoundError:
            return
        where, _, nth = asked.rpartition(" ")
        if where != f"{point} {side}":
            return
        if asked != self._order:
            self._order, self._passed = asked, 0
        self._passed += 1
        if self._passed < int(nth):
            return
        mine = self._struck.with_name(f"{STRUCK}-{os.getpid()}")
        mine.write_text(str(os.getpid()))
        try:
            self._armed.unlink()
        except FileNotFoundError:  # another process was there first
            return
        mine.rename(self._struck)
        os.kill(os.getpid(), signal.SIGKILL)


class _Finder(MetaPathFinder):
    def __init__(self, points: Sequence[Point], death: _Death) -> None:
        self._points, self._death = points, death

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        points = [point for point in self._points if point.module == fullname]
        spec = PathFinder.find_spec(fullname, path, target) if points else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, points, self._death)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, points: Sequence[Point], death: _Death) -> None:
        self._loader, self._points, self._death = loader, points, death

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for point in self._points:
            *owners, name = point.name.split(".")
            owner: Any = functools.reduce(getattr, owners, module)
            found = inspect.getattr_static(owner, name)
            if isinstance(found, classmethod):
                setattr(owner, name, classmethod(_wrapped(point, found.__func__, self._death)))
            else:
                setattr(owner, name, _wrapped(point, found, self._death))


def _wrapped(point: Point, step: Callable[..., Any], death: _Death) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(step):

        @functools.wraps(step)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            death.near(point, "before")
            answer = await step(*arguments, **named)
            death.near(point, "after")
            return answer

        return awaited

    @functools.wraps(step)
    def called(*arguments: Any, **named: Any) -> Any:
        death.near(point, "before")
        answer = step(*arguments, **named)
        death.near(point, "after")
        return answer

    return called

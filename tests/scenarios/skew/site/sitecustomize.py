"""Read by every Python process that has this folder on its path: its wall clock is wrong.

Everything else is as it is: the servers, the monotonic clock, the clocks of other deployments.
"""

import os
import time
from collections.abc import Callable

import uuid_utils

_SKEW_S = float(os.environ["CLOCK_SKEW_S"])  # noqa: TID251 - a test's
_wall_s: Callable[[], float] = time.time  # noqa: TID251 - as above
_uuid7 = uuid_utils.uuid7


def _wrong_s() -> float:
    return _wall_s() + _SKEW_S


def _wrong_uuid7(*, nanoseconds: int | None = None) -> uuid_utils.UUID:
    return _uuid7(nanoseconds=nanoseconds or int(_wrong_s() * 1e9))


time.time = _wrong_s  # noqa: TID251 - as above
uuid_utils.uuid7 = _wrong_uuid7

"""What is away, said the same way everywhere: the fields of a log line that an outage repeats.

Whoever writes the log says one line a second of a cause, however many places find it away.
"""

import asyncpg
from redis.exceptions import RedisError

from ledger.fcall import Epoch

REDIS, POSTGRES, RECOVERY = "redis", "postgres", "recovery"

_POSTGRES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def outage(error: BaseException, *, of: str = POSTGRES) -> dict[str, str]:
    """`cause` and `reason` of an error. `of`: whose it is if it is but an `OSError` or a timeout.

    What no outage explains is a cause of its own, under the name of its type.
    """
    reason = str(error) or type(error).__name__
    return {"cause": _cause(error, of), "reason": reason}


def _cause(error: BaseException, of: str) -> str:
    if isinstance(error, RedisError):
        return REDIS
    if isinstance(error, _POSTGRES):
        return POSTGRES
    if isinstance(error, Epoch):
        return RECOVERY
    if isinstance(error, OSError):
        return of
    # An error of ours tells by its cause whose it is.
    return type(error).__name__ if error.__cause__ is None else _cause(error.__cause__, of)

"""An error says what is away, whoever it was that met it."""

import asyncpg
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from ledger.fcall import Epoch
from ledger.outage import POSTGRES, RECOVERY, REDIS, outage


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RedisConnectionError("refused"), REDIS),
        (asyncpg.TooManyConnectionsError("too many"), POSTGRES),
        (asyncpg.InterfaceError("closed"), POSTGRES),
        (Epoch(3), RECOVERY),
        (TimeoutError(), POSTGRES),
        (ValueError("a bug"), "ValueError"),
    ],
)
def test_an_error_tells_what_is_away(error: Exception, cause: str) -> None:
    said = outage(error)
    assert said["cause"] == cause
    assert said["reason"], "an error without words shows its type"


def test_who_speaks_to_one_server_knows_whose_timeout_it_is() -> None:
    assert outage(TimeoutError(), of=REDIS) == {"cause": REDIS, "reason": "TimeoutError"}


def test_an_error_of_ours_tells_by_its_cause() -> None:
    ours = RuntimeError("the store is away")
    ours.__cause__ = RedisConnectionError("refused")
    assert outage(ours) == {"cause": REDIS, "reason": "the store is away"}

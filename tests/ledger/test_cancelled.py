"""Whatever a library makes of a cancellation, who was told to end does."""

import ast
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from ledger.cancelled import obeyed, raise_if_cancelled
from ledger.postgres import connect
from tests.ledger.deployment import until

ROOT = Path(__file__).parent.parent.parent
# What a wait that was cancelled may raise instead, as a library lost its connection meanwhile.
INSTEAD = frozenset(
    {"Exception", "OSError", "PostgresError", "AWAY", "RedisError", "CacheAway", "UNREADABLE"}
)


class TestObeyed:
    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_cancellation_that_the_client_lost_is_obeyed(self, *, fails: bool) -> None:
        begun = asyncio.Event()

        async def loses_it() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if fails:
                    raise ConnectionError from None

        task = asyncio.ensure_future(obeyed(loses_it()))
        await begun.wait()
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_what_was_not_cancelled_answers_or_fails_as_it_does(self) -> None:
        async def answers() -> int:
            return 7

        async def fails() -> None:
            raise ConnectionError

        assert await obeyed(answers()) == 7
        with pytest.raises(ConnectionError):
            await obeyed(fails())


async def test_a_job_in_a_transaction_ends_although_its_server_is_gone(postgres_url: str) -> None:
    """What asyncpg raises is an error like any other; a job that tries again would go on."""
    met: list[BaseException] = []

    async def job(connection: asyncpg.Connection) -> None:
        while True:
            try:
                async with connection.transaction():
                    await connection.execute("SELECT pg_sleep(60)")
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                met.append(error)
                raise_if_cancelled()
            await asyncio.sleep(0.01)

    watcher, connection = [await connect(postgres_url, name=name) for name in ("watch", "job")]
    pid = connection.get_server_pid()
    task = asyncio.ensure_future(job(connection))

    async def sleeps() -> bool:
        asked = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1"
        return bool(await watcher.fetchval(asked, pid))

    await until(sleeps)
    task.cancel()
    connection.terminate()
    await asyncio.wait({task}, timeout=5)
    await watcher.execute("SELECT pg_terminate_backend($1)", pid)
    await watcher.close()

    assert met, "it was told of something else than its end"
    assert task.cancelled()


def test_every_loop_that_outlives_errors_obeys_its_end() -> None:
    paths = sorted(path for tree in ("gateway", "ledger") for path in (ROOT / tree).rglob("*.py"))
    handlers = [(path, handler) for path in paths for handler in _handlers(path)]
    deaf = [
        f"{path.relative_to(ROOT)}:{handler.lineno}"
        for path, handler in handlers
        if ast.unparse(handler.body[0]) != "raise_if_cancelled()"
    ]
    assert not deaf, "a cancelled job would never stop; begin with raise_if_cancelled()"
    assert len(handlers) > 10, "or they are not found"


def _handlers(path: Path) -> Iterator[ast.ExceptHandler]:
    """Those of endless loops that go on after what may stand for a cancellation."""
    loops = [
        loop
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.AsyncFunctionDef)
        for loop in ast.walk(function)
        if isinstance(loop, ast.While) and ast.unparse(loop.test) == "True"
    ]
    for handler in (one for loop in loops for one in ast.walk(loop)):
        if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
            continue
        goes_on = not isinstance(handler.body[-1], (ast.Raise, ast.Return, ast.Break))
        if goes_on and INSTEAD & set(re.findall(r"\w+", ast.unparse(handler.type))):
            yield handler

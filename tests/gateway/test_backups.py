"""Backups of a Postgres of our own: private, whole, put back with nothing deleted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from gateway.backups import BackupFailed, back_up, restore
from gateway.embedded import Embedded, EmbeddedFailed

NOW_S = 1_800_000_000.0


@asynccontextmanager
async def running(data: Path) -> AsyncIterator[asyncpg.Connection]:
    """The servers of this folder, and a connection to its Postgres."""
    async with Embedded(data) as servers:
        connection = await asyncpg.connect(servers.urls.postgres)
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def backed_up(folder: Path) -> AsyncIterator[None]:
    """Running servers with a table of one row, in a backup beside them, and a second row since."""
    async with running(folder) as connection:
        (folder / "pepper").write_text("the pepper")
        await connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        await asyncio.to_thread(back_up, folder, folder.with_name("backup"), now_s=NOW_S)
        await connection.execute("INSERT INTO t VALUES (2)")
        yield


async def test_a_backup_of_running_servers_is_private_whole_and_never_overwritten(
    tmp_path: Path,
) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    async with backed_up(data):
        private = ("pepper", "passwords.json", "postgres")
        assert all(not (backup / name).stat().st_mode & 0o077 for name in private)
        assert (backup / "backup.json").read_text() == '{"made_at": "20270115T080000Z"}\n'
        with pytest.raises(BackupFailed, match="exists"):
            await asyncio.to_thread(back_up, data, backup, now_s=NOW_S)
        with pytest.raises(BackupFailed, match="in use by process"):
            restore(data, backup, now_s=NOW_S)


async def test_a_backup_without_servers_fails_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="no servers were ever started"):
        back_up(tmp_path / "data", tmp_path / "backup", now_s=NOW_S)
    assert list(tmp_path.iterdir()) == []


async def test_servers_are_not_started_empty_where_a_restore_was_killed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(data):
        pass
    (data / "postgres").rename(data / "postgres.before-20270115T080000Z")

    with pytest.raises(EmbeddedFailed, match="run `tollgate restore` again"):
        async with running(data):
            pass


class TestRestore:
    """With the servers stopped."""

    @pytest.fixture
    async def stopped(self, tmp_path: Path) -> Path:
        folder = tmp_path / "data"
        async with backed_up(folder):
            pass
        return folder

    async def test_postgres_is_as_it_was_and_what_it_replaces_is_kept(self, stopped: Path) -> None:
        aside = restore(stopped, stopped.with_name("backup"), now_s=NOW_S)
        assert aside is not None
        assert (aside.name, aside.is_dir()) == ("postgres.before-20270115T080000Z", True)
        async with running(stopped) as connection:
            assert await connection.fetchval("SELECT array_agg(n) FROM t") == [1]

    async def test_a_new_machine_gets_the_secrets_as_well(self, stopped: Path) -> None:
        fresh = stopped.with_name("fresh")
        assert restore(fresh, stopped.with_name("backup"), now_s=NOW_S) is None
        assert (fresh / "pepper").read_text() == "the pepper"
        async with running(fresh) as connection:
            assert await connection.fetchval("SELECT array_agg(n) FROM t") == [1]

    async def test_what_is_no_whole_backup_or_anothers_is_refused(self, stopped: Path) -> None:
        backup = stopped.with_name("backup")
        (stopped / "pepper").write_text("another pepper")
        with pytest.raises(BackupFailed, match="another deployment's"):
            restore(stopped, backup, now_s=NOW_S)
        (backup / "backup.json").unlink()
        with pytest.raises(BackupFailed, match="no whole backup"):
            restore(stopped, backup, now_s=NOW_S)

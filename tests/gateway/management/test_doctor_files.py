"""What the doctor sees of this machine: secrets, files, the disk and journals."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import yaml

from gateway.config import read
from gateway.management import doctor_files
from gateway.settings import Config
from ledger.doctor import Grade
from tests.ledger.journaling import Clock, create, write

A = UUID(int=1)


def configured(folder: Path, **changes: Any) -> Config:
    """A configuration with its data in a folder of the test's."""
    return read(yaml.safe_dump({"data_dir": str(folder / "data"), **changes}), {})


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(postgres_url)
    yield made
    await made.close()


def test_vendors_without_any_key_are_told(tmp_path: Path) -> None:
    vendor = {"kind": "openai", "base_url": "https://v", "api_key": "${NOT_SET}"}
    found = doctor_files.providers(configured(tmp_path, providers={"v": vendor}))
    assert (found.grade, found.said) == (Grade.WARNING, "v waits for ${NOT_SET}")
    with_key = {**vendor, "api_key": "sk-0123456789"}
    both = doctor_files.providers(configured(tmp_path, providers={"v": vendor, "w": with_key}))
    assert (both.grade, both.said) == (
        Grade.OK,
        "1 of 2 providers have their key; v waits for ${NOT_SET}",
    )


@pytest.mark.parametrize("name", ["pepper", "passwords.json", "journal/x/1.journal"])
def test_a_secret_or_journal_that_others_can_read_is_told(tmp_path: Path, name: str) -> None:
    config = configured(tmp_path)
    file = config.data_dir / name
    file.parent.mkdir(parents=True)
    for folder in file.parents:
        if folder != tmp_path and tmp_path in folder.parents:
            folder.chmod(0o700)
    file.touch(mode=0o600)
    assert doctor_files.permissions(config).grade is Grade.OK
    file.chmod(0o640)
    found = doctor_files.permissions(config)
    assert (found.grade, found.said) == (Grade.PROBLEM, f"{file} has mode 640")


def test_a_disk_too_small_for_the_journal_is_told(tmp_path: Path) -> None:
    assert doctor_files.disk(configured(tmp_path)).grade is Grade.OK
    found = doctor_files.disk(configured(tmp_path), free_in=lambda _: 2**30 - 1)
    assert (found.grade, found.said) == (
        Grade.WARNING,
        "1023 MiB are free for journals that may take 1024",
    )


async def test_a_pepper_that_is_gone_though_keys_were_made_with_it_is_told(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    config = configured(tmp_path)
    assert (await doctor_files.pepper(config, connection)).grade is Grade.OK
    await connection.execute(
        "INSERT INTO organization (id, name, partition) VALUES ($1, 'A', 0)", A
    )
    await connection.execute("INSERT INTO project VALUES ($1, $1, 'p', true)", A)
    await connection.execute(
        "INSERT INTO api_key (id, organization_id, project_id, digest, name, last4)"
        " VALUES ($1, $1, $1, 'd', 'k', '1234')",
        A,
    )
    assert (await doctor_files.pepper(config, connection)).grade is Grade.PROBLEM
    config.data_dir.mkdir()
    (config.data_dir / "pepper").touch()
    assert (await doctor_files.pepper(config, connection)).grade is Grade.OK


async def test_a_journal_left_behind_with_calls_that_postgres_lacks_is_told(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    config = configured(tmp_path)
    journal = create(config.journal_dir, Clock())
    write(journal, 1, 2, 3)
    assert (await doctor_files.journals(config, connection)).grade is Grade.OK  # it is in use
    journal.close()
    found = await doctor_files.journals(config, connection)
    assert (found.grade, "3 calls that are not in Postgres" in found.said) == (Grade.PROBLEM, True)
    segment = next(config.journal_dir.glob("*/*.journal"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    found = await doctor_files.journals(config, connection)
    assert "stretches that cannot be read" in found.said

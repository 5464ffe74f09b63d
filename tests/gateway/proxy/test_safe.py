"""What a last byte waits for."""

import asyncio
from pathlib import Path

import pytest

from gateway.proxy.exchange import ClientGone
from gateway.proxy.safe import made_safe
from ledger.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path, worker="one", fsync="group")


async def test_it_goes_once_a_replica_has_the_end(journal: Journal) -> None:
    placed = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(
        made_safe(placed, journal, is_unjournaled=False, needs_replica=True, within_s=5)
    )
    await asyncio.sleep(0)
    assert not waiting.done()

    placed.set_result(None)

    await waiting
    journal.close()


@pytest.mark.parametrize("needs_replica", [True, False])
async def test_it_never_goes_while_nobody_has_the_end(
    journal: Journal, *, needs_replica: bool
) -> None:
    placed = asyncio.get_running_loop().create_future()

    with pytest.raises(ClientGone):
        await made_safe(
            placed, journal, is_unjournaled=True, needs_replica=needs_replica, within_s=0.01
        )
    assert placed.cancelled()
    journal.close()


async def test_without_a_replica_it_goes_once_the_disk_has_the_end(journal: Journal) -> None:
    placed = asyncio.get_running_loop().create_future()

    await made_safe(placed, journal, is_unjournaled=False, needs_replica=False, within_s=5)

    assert placed.cancelled(), "nobody waits for Redis"
    journal.close()

"""The data plane in this process, as most of these tests want it."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.gateway.proxy.gatehouse import Gatehouse, OpenGate
from tests.ledger.own_valkey import OwnValkey
from tests.vendor import Vendor


@pytest.fixture
def open_gate(redis_url: str, vendor: Vendor, tmp_path: Path) -> OpenGate:
    """`Gatehouse.opened` on this test's Valkey, vendor and folder: what it differs in is named."""
    return partial(Gatehouse.opened, redis_url, vendor, tmp_path)


@pytest.fixture
async def gate(open_gate: OpenGate) -> AsyncIterator[Gatehouse]:
    """One worker's data plane with a wallet of $10."""
    async with open_gate() as opened:
        yield opened


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[OwnValkey]:
    """A server that may be harmed."""
    server = OwnValkey(tmp_path / "own")
    await server.start()
    yield server
    server.kill()

"""The data plane in this process, as most of these tests want it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.proxy.gatehouse import Gatehouse
from tests.vendor import Vendor


@pytest.fixture
async def gate(redis_url: str, vendor: Vendor, tmp_path: Path) -> AsyncIterator[Gatehouse]:
    """One worker's data plane with a wallet of $10."""
    async with Gatehouse.opened(redis_url, vendor, tmp_path) as opened:
        yield opened

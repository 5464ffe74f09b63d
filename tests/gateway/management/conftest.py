"""The management API in this process, for the tests of its resources."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.management.office import Office, open_office


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_office(postgres_url, redis_url, tmp_path) as opened:
        yield opened

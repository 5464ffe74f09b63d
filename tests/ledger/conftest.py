"""A ledger on the real servers, for the tests that need both."""

from collections.abc import AsyncIterator

import pytest

from tests.ledger.deployment import Deployment, deployed


@pytest.fixture
async def deployment(postgres_url: str, redis_url: str) -> AsyncIterator[Deployment]:
    async with deployed(postgres_url, redis_url) as made:
        yield made

"""The configured processor is the one that is opened."""

from datetime import UTC, datetime

import asyncpg
import pytest

from gateway.config import read
from gateway.payments.chosen import processor
from tests.gateway.payments.stripe_there import PUBLISHABLE_KEY, settings


def now() -> datetime:
    return datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "name", "key"),
    [
        ("{}", None, None),
        ("payments: {processor: sandbox}", "sandbox", ""),
        (settings("http://[::1]:8420"), "stripe", PUBLISHABLE_KEY),
    ],
)
async def test_it_is_what_the_setting_says(
    postgres_url: str, text: str, name: str | None, key: str | None
) -> None:
    config = read(text, {})
    async with (
        asyncpg.create_pool(postgres_url, min_size=0) as pool,
        processor(config.payments, pool, now=now, site="http://x") as found,
    ):
        assert (found and found.name) == name
        if found is not None:
            assert found.publishable_key == key

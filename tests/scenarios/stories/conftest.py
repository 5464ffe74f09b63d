"""A town for each story, with nobody in it yet."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.scenarios.stories.town import Town, open_town
from tests.vendor import Vendor


@pytest.fixture
async def town(folder: Path, vendor: Vendor) -> AsyncIterator[Town]:
    """A deployment of its own for one story."""
    async with open_town(folder, vendor) as made:
        yield made

"""What more than one file of these tests starts."""

from collections.abc import Iterator

import pytest

from tests.gateway.management.elsewhere import Elsewhere


@pytest.fixture(scope="session")
def issuer() -> Iterator[Elsewhere]:
    """Another place to sign in at, in a process of its own."""
    with Elsewhere.running() as running:
        yield running

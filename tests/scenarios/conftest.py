"""One deployment for scenarios that only need calls; those that break things start their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.vendors import many_names
from tests.vendor import Vendor


def _deployed(folder: Path, vendor: Vendor, *, workers: int) -> Iterator[Deployment]:
    names = many_names(vendor.port)
    return Deployment.kept(folder, vendor_port=vendor.port, workers=workers, changes=names)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, vendor_apart: Vendor) -> Iterator[Deployment]:
    """A running deployment with two workers and the scripted vendor behind it."""
    yield from _deployed(tmp_path_factory.mktemp("tollgate"), vendor_apart, workers=2)


@pytest.fixture
async def tollgate(shared: Deployment, vendor_apart: Vendor) -> Deployment:
    """The shared deployment, with nothing in the vendor's log."""
    await vendor_apart.forget()
    return shared


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, vendor_apart: Vendor) -> Iterator[Deployment]:
    """A running deployment with four workers, whatever is true of all of them at once."""
    yield from _deployed(tmp_path_factory.mktemp("many"), vendor_apart, workers=4)


@pytest.fixture
async def fleet(many: Deployment, vendor_apart: Vendor) -> Deployment:
    """The deployment of four workers, with nothing in the vendor's log."""
    await vendor_apart.forget()
    return many


@pytest.fixture
async def key(tollgate: Deployment) -> Key:
    """A key of an organization of its own with $10."""
    return await tollgate.new_key()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a scenario's own deployment lives."""
    return tmp_path

"""The gateway's tests run on the event loop that the gateway runs on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The hook of pytest-asyncio; the key becomes part of the test's id."""
    del config, item
    return {"uvloop": uvloop.new_event_loop}

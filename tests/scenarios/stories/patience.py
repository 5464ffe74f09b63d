"""Waiting for what happens soon, in another process."""

import asyncio
from collections.abc import Awaitable, Callable

_PATIENCE_S = 20.0
_PAUSE_S = 0.02


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Return once it is; `TimeoutError` if it never is."""
    async with asyncio.timeout(_PATIENCE_S):
        while not await is_so():
            await asyncio.sleep(_PAUSE_S)

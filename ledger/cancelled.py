"""A cancellation that a library lost, or answered with an error of its own, is obeyed all the same.

redis-py sends by `asyncio.wait_for`, which in Python 3.11 loses one that arrives when the send is
just done, or failed. asyncpg leaves a transaction with an `InterfaceError` if its connection broke
meanwhile, whatever it was left for. A job that tries again after errors would then never stop.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Answer = TypeVar("Answer")


async def obeyed(work: Awaitable[Answer]) -> Answer:
    """Await a step of redis-py; a cancellation that came meanwhile is raised after it."""
    task = asyncio.current_task()
    asked = 0 if task is None else task.cancelling()
    try:
        return await work
    finally:
        if task is not None and task.cancelling() > asked:
            raise asyncio.CancelledError


def raise_if_cancelled() -> None:
    """For whoever caught an error and would go on: not if the task was told to end."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError

"""The official OpenAI client in either of its kinds, asked in one way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

from openai import AsyncOpenAI, OpenAI

from tests.scenarios.deployment import Deployment, Key

Kind = Literal["async", "sync"]
KINDS: tuple[Kind, ...] = ("async", "sync")


class Sdk:
    """One client. Retries are off, so that each error is seen."""

    def __init__(self, client: AsyncOpenAI | OpenAI) -> None:
        self._client = client

    async def call(self, ask: Callable[[Any], Any]) -> Any:
        """What `ask(client)` gives."""
        if isinstance(self._client, OpenAI):
            return await asyncio.to_thread(ask, self._client)
        return await ask(self._client)

    async def stream(self, ask: Callable[[Any], Any]) -> list[Any]:
        """Every event of the stream that `ask(client)` gives."""
        if isinstance(self._client, OpenAI):
            return await asyncio.to_thread(lambda: list(ask(self._client)))
        return [event async for event in await ask(self._client)]


def sdk(tollgate: Deployment, key: Key, kind: Kind) -> AbstractAsyncContextManager[Sdk]:
    """A client of this kind with this key."""
    return sdk_at(tollgate.base_url, key.secret, kind)


@asynccontextmanager
async def sdk_at(url: str, secret: str, kind: Kind) -> AsyncIterator[Sdk]:
    """A client of this kind, pointed anywhere."""
    if kind == "sync":
        with OpenAI(base_url=url, api_key=secret, max_retries=0) as client:
            yield Sdk(client)
    else:
        async with AsyncOpenAI(base_url=url, api_key=secret, max_retries=0) as other:
            yield Sdk(other)

"""Of two releases side by side the newer one's functions run, whoever comes first."""

import asyncio
import re
from pathlib import Path

from redis.asyncio import Redis

from ledger import functions, library
from ledger.functions import Partition, install
from ledger.library import is_newer
from tests.ledger.partitions import NUMBER

LIBRARY = (Path(library.__file__).parent / "lua" / "tollgate.lua").read_text()


class TestInstall:
    async def test_loads_the_library_where_there_is_none(self, client: Redis) -> None:
        await install(client)

        assert await Partition(client, NUMBER).state() != functions.PartitionState()

    async def test_keeps_a_newer_library(self, client: Redis) -> None:
        newer = re.sub("(?m)^-- version: .*", "-- version: 99", LIBRARY)
        await client.function_load(newer)

        await install(client)

        assert await library._loaded_version(client) == 99
        assert await is_newer(client)

    async def test_replaces_an_older_library(self, client: Redis) -> None:
        older = "#!lua name=tollgate\n-- version: 0\n"
        await client.function_load(older + "redis.register_function('old', function() end)")

        await install(client)

        assert await library._loaded_version(client) == library._version(LIBRARY)

    async def test_may_run_in_many_processes_at_once(self, client: Redis) -> None:
        await asyncio.gather(*(install(client) for _ in range(8)))

        assert await library._loaded_version(client) == library._version(LIBRARY)

    async def test_does_not_touch_a_library_of_the_same_version(
        self, client: Redis, partition: Partition
    ) -> None:
        await install(client)

        assert (await partition.state()).is_active()

"""The function library: which version Redis has, and loading ours.

Only a higher version replaces another, so of two releases side by side the newer one's runs.
"""

import logging
import re
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from ledger.clients import ClusterAway, primaries
from ledger.fcall import execute
from ledger.outage import outage

log = logging.getLogger(__name__)

_LIBRARY = Path(__file__).parent / "lua" / "tollgate.lua"
_NONE = -1
_VERSION = re.compile(r"^-- version: (\d+)$", re.MULTILINE)


async def install(client: Redis) -> None:
    """Load the function library where Redis has no such version or newer; in a Cluster everywhere.

    Replacing it empties the fence's memory, so every partition recovers once: the price of an
    upgrade of the functions. Two processes may do this at the same time.
    """
    code = _LIBRARY.read_text(encoding="utf-8")
    failed: list[RedisError] = []
    servers = await primaries(client)
    if not servers:
        raise ClusterAway("no node of the Cluster has slots")
    for server in servers:
        try:
            await _install(server, code)
        except RedisError as error:
            failed.append(error)
    # The partitions of the others go on; whoever keeps the functions tries these again.
    if len(failed) == len(servers):
        raise failed[0]
    if failed:
        log.warning("functions not loaded everywhere", extra={**outage(failed[0])})


async def _install(client: Redis, code: str) -> None:
    loaded = await _loaded_version(client)
    if loaded >= _version(code):
        return
    arguments = [code] if loaded == _NONE else ["REPLACE", code]
    try:
        await execute(client, "FUNCTION LOAD", *arguments)
    except ResponseError:
        if await _loaded_version(client) < _version(code):
            raise


def _version(code: str) -> int:
    found = _VERSION.search(code)
    assert found, "the library names its version"
    return int(found[1])


async def _loaded_version(client: Redis) -> int:
    """The version of the library that Redis has; `_NONE` when it has none."""
    libraries = await execute(client, "FUNCTION LIST", "LIBRARYNAME", "tollgate", "WITHCODE")
    for library in libraries:
        code = dict(zip(library[::2], library[1::2], strict=True))[b"library_code"]
        return _version(code.decode())
    return _NONE


async def library_versions(client: Redis) -> tuple[int | None, int]:
    """The version of the library that Redis has, None if it has none, and this release's."""
    loaded = await _loaded_version(client)
    ours = _version(_LIBRARY.read_text(encoding="utf-8"))
    return None if loaded == _NONE else loaded, ours


async def is_newer(client: Redis) -> bool:
    """Whether Redis has the library of a newer release, which may log what this one cannot read."""
    loaded, ours = await library_versions(client)
    return loaded is not None and loaded > ours

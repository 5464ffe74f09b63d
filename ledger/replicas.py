"""Whether the servers can keep what durability mode `replica` promises: every end on two disks."""

from collections.abc import Iterable

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from ledger.cancelled import obeyed
from ledger.clients import holder, name_of
from ledger.fcall import execute, key_names

_PROBE_MS = 1_000  # less than the client waits for it
_KEEP_MS = 1_000
_WANTED = {
    "appendonly": "yes",
    "appendfsync": "always",  # or WAITAOF answers before the disk has it, or much later
    "maxmemory-policy": "noeviction",
}
_REPLICAS_MIN = "min-replicas-to-write"


async def contradictions(client: Redis, partitions: Iterable[int]) -> list[str]:
    """What each server with one of these partitions lacks for it; empty if nothing."""
    found: list[str] = []
    seen: set[str] = set()
    for number in partitions:
        name = key_names(number, 0)[0]
        server = await holder(client, name)
        at = name_of(server)
        if at not in seen:
            seen.add(at)
            found += [f"{at} {what}" for what in await _lacks(server, f"{name}:probe")]
    return found


async def _lacks(server: Redis, key: str) -> list[str]:
    lacks: list[str] = []
    try:
        settings = await _settings(server)
    except NoPermissionError:
        settings = {}  # a managed server hides them; the probe below says what counts
    for setting, wanted in _WANTED.items():
        if settings.get(setting, wanted) != wanted:
            lacks.append(f"has {setting} {settings[setting]}, it must be {wanted}")
    if settings.get(_REPLICAS_MIN) == "0":
        lacks.append(f"has {_REPLICAS_MIN} 0: without a replica it would admit calls it cannot end")
    if lacks:
        return lacks
    try:
        async with server.pipeline(transaction=False) as pipeline:
            _ = pipeline.set(key, "1", px=_KEEP_MS)
            _ = pipeline.execute_command("WAITAOF", 1, 1, _PROBE_MS)
            _, (own, replicas) = await obeyed(pipeline.execute())
    except ResponseError as error:
        return [f"has no replica that follows it ({error})"]
    if not own or not replicas:
        why = "no replica follows it, or none has appendonly yes"
        return [f"had a write on {own + replicas} disks after {_PROBE_MS / 1000:.0f} s: {why}"]
    return []


async def _settings(server: Redis) -> dict[str, str]:
    told = await execute(server, "CONFIG GET", *_WANTED, _REPLICAS_MIN)
    pairs = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(word: str | bytes) -> str:
    return word if isinstance(word, str) else word.decode()

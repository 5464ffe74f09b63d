"""Every place that a secret could be read in, and what is found there."""

import io
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from ledger.fcall import execute
from tests.scenarios.deployment import Deployment

# What `plant` puts there, and where: a search that does not find it finds nothing.
CONTROLS = {
    "control in a text": "postgres",
    "control in bytes": "postgres",
    "control in a string": "redis",
    "control in a hash": "redis",
    "control in a sorted set": "redis",
    "control in a set": "redis",
    "control in a stream": "redis",
    "control in the log": "log",
    "control in a file": "files",
}


async def postgres_dump(tollgate: Deployment, *, but: Container[str] = ()) -> bytes:
    """Every table but those, as COPY has it; bytes appear as hex."""
    connection = await tollgate.postgres()
    out = io.BytesIO()
    try:
        tables = await connection.fetch(
            "SELECT relname FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        for row in tables:
            if row["relname"] in but:
                continue
            await connection.copy_from_table(row["relname"], output=out, format="csv")
    finally:
        await connection.close()
    return out.getvalue()


async def redis_dump(redis: Redis) -> bytes:
    """Every key with all that it holds."""
    readers = {
        b"string": ("GET",),
        b"hash": ("HGETALL",),
        b"zset": ("ZRANGE", 0, -1),
        b"set": ("SMEMBERS",),
        b"stream": ("XRANGE", "-", "+"),
    }
    parts: list[bytes] = []
    for name in await execute(redis, "KEYS", "*"):
        kind = await execute(redis, "TYPE", name)
        if kind == b"none":
            continue  # its time was over meanwhile
        verb, *rest = readers[kind]
        parts += [name, *flattened(await execute(redis, verb, name, *rest))]
    return b"\n".join(parts)


def flattened(held: Any) -> Iterator[bytes]:
    """Every byte string within."""
    if isinstance(held, bytes):
        yield held
    elif isinstance(held, dict):
        yield from flattened([*held.items()])
    elif isinstance(held, list | tuple | set):
        for one in held:
            yield from flattened(one)


def hits(
    secrets: Mapping[str, str],
    places: Mapping[str, bytes],
    *,
    allowed: Container[tuple[str, str]] = (),
) -> list[tuple[str, str]]:
    """Which secret is where, in clear or as Postgres dumps bytes; `allowed`: may be there."""
    return [
        (what, where)
        for what, text in secrets.items()
        for where, found in places.items()
        if (what, where) not in allowed
        if text.encode() in found or text.encode().hex().encode() in found
    ]


def files(folder: Path, *, but: Container[str] = ()) -> bytes:
    """Every file of the data folder, `but` those of these folders in it: journals, snapshots, the
    servers' own.
    """
    found = (
        path
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in but
    )
    return b"\n".join(path.read_bytes() for path in found)


async def plant(tollgate: Deployment) -> None:
    """Every control of a deployment's own places, each where its name says."""
    connection = await tollgate.postgres()
    try:
        await connection.execute("CREATE TABLE control (said text, kept bytea)")
        row = ("control in a text", b"control in bytes")
        await connection.execute("INSERT INTO control VALUES ($1, $2)", *row)
    finally:
        await connection.close()
    async with tollgate.redis() as redis:
        await execute(redis, "SET", "control:1", "control in a string")
        await execute(redis, "HSET", "control:2", "a", "control in a hash")
        await execute(redis, "ZADD", "control:3", 1, "control in a sorted set")
        await execute(redis, "SADD", "control:4", "control in a set")
        await execute(redis, "XADD", "control:5", "*", "a", "control in a stream")
    with tollgate.log_path.open("a") as log:
        log.write("control in the log\n")
    (tollgate.data / "run" / "control").write_text("control in a file")

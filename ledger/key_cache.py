"""API keys as Redis remembers them, so that a lookup needs no Postgres. They hold no money."""

from typing import NamedTuple

from redis.asyncio import Redis

from ledger.fcall import execute


class CachedKey(NamedTuple):
    """An API key as cached; `payload` is None for the tombstone of a revoked one."""

    version: int
    payload: bytes | None


class KeyCache:
    """API keys as Redis remembers them, by hex digest. A newer version is never overwritten."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def get(self, digest: str) -> CachedKey | None:
        """What is cached of a key; None if nothing is."""
        stored = await self._client.get(_cache_key(digest))
        if not isinstance(stored, bytes):
            return None
        version, _, payload = stored.partition(b"|")
        return CachedKey(int(version), payload or None)

    async def put(self, digest: str, payload: bytes, *, version: int, ttl_ms: int) -> bool:
        """Cache a key; False if a newer version, or a tombstone, is there."""
        return bool(
            await execute(
                self._client, "FCALL", "tg_key_put", 1, _cache_key(digest), version, payload, ttl_ms
            )
        )

    async def drop(self, digest: str, *, version: int, ttl_ms: int) -> bool:
        """Leave a tombstone that an older fill cannot overwrite; False if newer is there."""
        return bool(
            await execute(
                self._client, "FCALL", "tg_key_drop", 1, _cache_key(digest), version, ttl_ms
            )
        )


def _cache_key(digest: str) -> str:
    return f"tg:key:{digest}"

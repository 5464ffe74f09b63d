"""What was said in a call, sealed: the form it is kept in, its keys, and its end.

Each organization has a key for each day of UTC, which is itself sealed by the installation's. What
is to be forgotten loses its key first, and is unreadable from then on, wherever a copy of its rows
may be; the rows follow.
"""

import asyncio
import base64
import binascii
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.sealing import SealBroken, Sealer
from ledger.postgres import Connection
from ledger.retention import first_id

_KEY_BYTES, _NONCE_BYTES = 32, 12
_FORM = b"\1"  # of what is packed; another cipher or compression will be another
_BATCH = 500  # rows forgotten in a transaction

# One in use for each day; who was first has made it.
_MAKE_KEYS = """
    INSERT INTO content_key (id, organization_id, day, sealed)
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::date[], $4::bytea[])
    ON CONFLICT (organization_id, day) WHERE sealed IS NOT NULL DO NOTHING
"""
_KEYS = """
    SELECT k.id, k.organization_id, k.day, k.sealed FROM content_key AS k
    JOIN unnest($1::uuid[], $2::date[]) AS w (organization_id, day) USING (organization_id, day)
    WHERE k.sealed IS NOT NULL
"""
# Many may write, and who forgets waits for them and they for it. What was said before that and
# waited in some process meanwhile is not kept.
_WRITING = """
    SELECT pg_advisory_xact_lock_shared($1, hashtext(id::text)) FROM unnest($2::uuid[]) AS o (id)
"""
_FORGETTING = "SELECT pg_advisory_xact_lock($1, hashtext($2::uuid::text))"
_LOCKS = 0x746F6C6C  # "toll" in ASCII: the first half of each lock's number
_WRITE = """
    INSERT INTO call_content (organization_id, call_id, key_id, packed)
    SELECT w.* FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bytea[])
        AS w (organization_id, call_id, key_id, packed)
    JOIN organization AS o ON o.id = w.organization_id
    WHERE o.content_forgotten_at IS NULL OR w.call_id >= first_uuid(o.content_forgotten_at)
    ON CONFLICT DO NOTHING
"""
_READ = """
    SELECT c.packed, c.key_id, k.sealed
    FROM call_content AS c JOIN content_key AS k ON k.id = c.key_id
    WHERE c.organization_id = $1 AND c.call_id = $2 AND k.sealed IS NOT NULL
"""
_DESTROY_ALL = """
    UPDATE content_key SET sealed = NULL WHERE organization_id = $1 AND sealed IS NOT NULL
"""
_FORGOTTEN = "UPDATE organization SET content_forgotten_at = clock_timestamp() WHERE id = $1"
_DESTROY_OLD = """
    UPDATE content_key AS k SET sealed = NULL
    FROM unnest($1::uuid[], $2::date[]) AS o (id, keeps_from)
    WHERE k.organization_id = o.id AND k.day < o.keeps_from AND k.sealed IS NOT NULL
"""
_DESTROYED = "SELECT id, organization_id, day FROM content_key WHERE sealed IS NULL"
_FORGET = """
    DELETE FROM call_content WHERE organization_id = $1 AND call_id IN (
        SELECT call_id FROM call_content
        WHERE organization_id = $1 AND call_id >= $2 AND call_id < $3 AND key_id = $4 LIMIT $5
    )
"""
_FORGET_KEY = "DELETE FROM content_key WHERE id = $1 AND sealed IS NULL"


class Said(NamedTuple):
    """One call's two sides."""

    organization: UUID
    call_id: bytes
    request: bytes
    answer: bytes
    is_cut: bool = False  # one of them was longer than is kept

    @property
    def size(self) -> int:
        """What it takes in memory, about, bytes."""
        return len(self.request) + len(self.answer)


class Lost(Exception):
    """It is there and cannot be read: sealed by another installation, or changed since."""


Day: TypeAlias = tuple[UUID, date]
"""An organization's day."""


class Key(NamedTuple):
    """What a day's contents are sealed with."""

    id: UUID
    secret: bytes


def day_of(call_id: bytes) -> date:
    """The day of UTC on which a call was let in."""
    return datetime.fromtimestamp(int.from_bytes(call_id[:6], "big") / 1000, UTC).date()


def pack(said: Said, key: Key, nonce: bytes) -> bytes:
    """Compress and seal; it opens for this call's id alone."""
    plain = msgspec.msgpack.encode((said.request, said.answer, said.is_cut))
    return _FORM + nonce + AESGCM(key.secret).encrypt(nonce, zlib.compress(plain, 1), said.call_id)


def unpack(packed: bytes, key: Key, organization: UUID, call_id: bytes) -> Said:
    """What was packed; `Lost` if it is not as it was."""
    form, nonce, rest = packed[:1], packed[1 : 1 + _NONCE_BYTES], packed[1 + _NONCE_BYTES :]
    if form != _FORM:
        raise Lost("it is of no form that this release knows")
    try:
        plain = zlib.decompress(AESGCM(key.secret).decrypt(nonce, rest, call_id))
    except InvalidTag as error:
        raise Lost("it was sealed for another call, or was changed since") from error
    request, answer, is_cut = msgspec.msgpack.decode(plain, type=tuple[bytes, bytes, bool])
    return Said(organization, call_id, request, answer, is_cut)


class Vault:
    """Seals contents into Postgres and reads them again."""

    def __init__(self, sealer: Sealer, random_bytes: Callable[[int], bytes]) -> None:
        self._sealer, self._random_bytes = sealer, random_bytes

    async def keys(self, connection: Connection, days: Collection[Day]) -> Mapping[Day, Key]:
        """The keys in use of these days, made where there are none; first of all in a transaction.

        A key that another installation's pepper has sealed is not among them.
        """
        ordered = sorted(days)
        organizations = sorted({organization for organization, _ in ordered})
        await connection.execute(_WRITING, _LOCKS, organizations)
        ids = [UUID(bytes=self._random_bytes(16), version=4) for _ in ordered]
        secrets = [base64.b64encode(self._random_bytes(_KEY_BYTES)).decode() for _ in ordered]
        sealed = [
            self._sealer.seal(secret, str(one)) for one, secret in zip(ids, secrets, strict=True)
        ]
        where = [organization for organization, _ in ordered], [day for _, day in ordered]
        await connection.execute(_MAKE_KEYS, ids, *where, sealed)
        found = {}
        for row in await connection.fetch(_KEYS, *where):
            key = self._opened(row["id"], row["sealed"])
            if key is not None:
                found[row["organization_id"], row["day"]] = key
        return found

    async def write(
        self, connection: Connection, said: Sequence[Said], keys: Mapping[Day, Key]
    ) -> int:
        """Keep those that have a key; how many. Again is harmless. In the keys' transaction."""
        rows = await asyncio.to_thread(self._rows, said, keys)
        if rows:
            columns = (list(column) for column in zip(*rows, strict=True))
            await connection.execute(_WRITE, *columns)
        return len(rows)

    async def read(
        self, connection: Connection | asyncpg.Pool, organization: UUID, call_id: UUID
    ) -> Said | None:
        """What was said in a call; None: nothing is kept of it. `Lost`."""
        row = await connection.fetchrow(_READ, organization, call_id)
        if row is None:
            return None
        key = self._opened(row["key_id"], row["sealed"])
        if key is None:
            raise Lost("its key was sealed under another pepper")
        return unpack(row["packed"], key, organization, call_id.bytes)

    def _rows(
        self, said: Sequence[Said], keys: Mapping[Day, Key]
    ) -> list[tuple[UUID, UUID, UUID, bytes]]:
        rows = []
        for one in said:
            key = keys.get((one.organization, day_of(one.call_id)))
            if key is not None:
                packed = pack(one, key, self._random_bytes(_NONCE_BYTES))
                rows.append((one.organization, UUID(bytes=one.call_id), key.id, packed))
        return rows

    def _opened(self, key_id: UUID, sealed: bytes) -> Key | None:
        try:
            return Key(key_id, base64.b64decode(self._sealer.open(sealed, str(key_id))))
        except (SealBroken, binascii.Error):
            return None


async def destroy(connection: Connection, organization_id: UUID) -> None:
    """Nobody can read any more what an organization has said; its rows go within the hour.

    In a transaction, before it has locked anything.
    """
    await connection.execute(_FORGETTING, _LOCKS, organization_id)
    await connection.execute(_DESTROY_ALL, organization_id)
    await connection.execute(_FORGOTTEN, organization_id)


async def forget(connection: Connection, keeps_from: Mapping[UUID, date]) -> int:
    """Destroy the keys of days before these, and delete what has no key; how many rows that were.

    Killed anywhere, the next one goes on.
    """
    await connection.execute(_DESTROY_OLD, list(keeps_from), list(keeps_from.values()))
    rows = 0
    for key in await connection.fetch(_DESTROYED):
        bounds = first_id(key["day"]), first_id(key["day"] + timedelta(days=1))
        asked = (key["organization_id"], *bounds, key["id"], _BATCH)
        while count := int((await connection.execute(_FORGET, *asked)).rpartition(" ")[2]):
            rows += count
        await connection.execute(_FORGET_KEY, key["id"])
    return rows

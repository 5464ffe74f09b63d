"""The audit log: who changed what of an organization, in a hash chain that shows later edits.

A line is written in the transaction of the change it tells of: one never stands without the other.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from ledger.chain import Audited, audit_hash
from ledger.postgres import Connection, one_row

# NO KEY: a row inserted for the organization before has its key, and two such would wait for each
# other.
_END_OF_CHAIN = """
    SELECT audit_number, audit_hash, (extract(epoch FROM now()) * 1000000)::bigint AS now_us
    FROM organization WHERE id = $1 FOR NO KEY UPDATE
"""
_APPEND = """
    WITH appended AS (
        INSERT INTO audit_log (
            organization_id, number, at, actor, action, target, before, after, address,
            previous_hash, hash
        ) VALUES ($1, $2, to_timestamp($3::bigint / 1e6::float8), $4, $5, $6, $7, $8, $9, $10, $11)
    )
    UPDATE organization SET audit_number = $2, audit_hash = $11 WHERE id = $1
"""
_json = msgspec.json.Encoder(order="sorted").encode


class Change(NamedTuple):
    """What somebody did. Values are plain JSON without fractions; no secret is among them."""

    actor: str
    action: str  # "credit.grant", "key.revoke", ...
    target: str
    before: Mapping[str, object] | None = None
    after: Mapping[str, object] | None = None
    address: str | None = None  # where the request came from


async def append_change(connection: Connection, organization_id: str, change: Change) -> None:
    """Append a line to the organization's audit log. The caller has a transaction open."""
    assert connection.is_in_transaction(), "a line stands or falls with its change"
    end = await one_row(connection, _END_OF_CHAIN, organization_id)
    number = end["audit_number"] + 1
    audited = Audited(str(organization_id), number, end["now_us"], *change)
    await connection.execute(
        _APPEND,
        organization_id,
        number,
        end["now_us"],
        change.actor,
        change.action,
        change.target,
        None if change.before is None else _json(change.before).decode(),
        None if change.after is None else _json(change.after).decode(),
        change.address,
        end["audit_hash"],
        audit_hash(end["audit_hash"], audited),
    )

"""End what was withheld for withdrawals that were cut, by what Postgres says of them.

A process that takes money out may die, or be stopped for an hour, after any of its steps. Postgres
has a row of every withdrawal from before the first of them, so nothing is withheld unknown to it.
"""

from ledger.functions import Base, Partition
from ledger.postgres import Connection

PENDING_S_MAX = 60  # longer than any process is at one; and a slower one is only told to ask again

# One that is being booked now is locked, and not overdue.
_ABANDON_OVERDUE = """
    UPDATE withdrawal SET state = 'abandoned', ended_at = now() WHERE id IN (
        SELECT id FROM withdrawal
        WHERE partition = $1 AND released_at IS NULL AND state = 'pending'
          AND asked_at < now() - make_interval(secs => $2)
        FOR UPDATE SKIP LOCKED
    )
"""
_UNKNOWN = """
    SELECT id::text FROM unnest($1::uuid[]) AS w (id)
    WHERE NOT EXISTS (SELECT FROM withdrawal AS known WHERE known.id = w.id)
"""
# In one statement: a base and the withdrawals that are part of it are never told apart, and nothing
# is told before Postgres says that the partition is active (see `ledger.bases`).
_ENDED = """
    SELECT w.id::text AS wallet, w.base, w.spent, w.version, array(
        SELECT d.id::text FROM withdrawal AS d WHERE d.wallet_id = w.id AND d.state <> 'pending'
          AND (d.id = ANY ($2::uuid[]) OR (d.partition = $1 AND d.released_at IS NULL))
    ) AS ended
    FROM wallet AS w
    WHERE (
        w.id = ANY ($3::uuid[]) OR w.id IN (
            SELECT wallet_id FROM withdrawal
            WHERE partition = $1 AND released_at IS NULL AND state <> 'pending'
        )
    ) AND EXISTS (SELECT FROM part WHERE number = $1 AND generation = $4 AND state = 'active')
"""
_RELEASED = """
    UPDATE withdrawal SET released_at = now() WHERE id = ANY ($1::uuid[]) AND released_at IS NULL
"""


async def conclude(connection: Connection, partition: Partition, *, generation: int) -> int:
    """Bring the partition's withdrawals to an end that were cut; how many were given back.

    Abandons those that are pending for too long, and gives back what is withheld for any that is
    booked, abandoned or unknown. Raises `Epoch` when the partition is not active in Redis; while it
    is not in Postgres, nothing is given back: `conclude` it again then. Repeats, and two at once,
    do no harm.
    """
    withheld = await partition.withheld(generation)
    await connection.execute(_ABANDON_OVERDUE, partition.number, PENDING_S_MAX)
    ids = [one.id for one in withheld]
    wallets = [one.wallet for one in withheld]
    # What Redis has, Postgres had before: one without a row was lost by a Postgres that went back.
    unknown = {row["id"] for row in await connection.fetch(_UNKNOWN, ids)} if ids else set()
    bases: list[Base] = []
    for row in await connection.fetch(_ENDED, partition.number, ids, wallets, generation):
        ended = row["ended"] + [
            one.id for one in withheld if one.wallet == row["wallet"] and one.id in unknown
        ]
        if ended:
            state = (row["wallet"], row["base"], row["version"], "withdrawal", row["spent"])
            bases.append(Base(*state, tuple(ended)))
    if not bases:
        return 0
    await partition.set_bases(generation, bases)
    done = [one for base in bases for one in base.ended]
    await connection.execute(_RELEASED, done)
    return len(done)

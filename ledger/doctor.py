"""Judge the ledger as it is found, at work or at rest, and say what to do; it changes nothing.

The invariants are judged as far as the stores can tell: that records, postings and sums agree (I2,
I3, I8, I11) by `ledger.verify`; that Redis mirrors Postgres (I5) by the audit; that what is held is
what open calls and withdrawals hold (I4), that no wallet is below zero without a cause (I6), that
what has ended is on its way (I7) and that no position went back (I10) here. Whether nothing is lost
and every charge is the vendor's (I1, I9), and that no store has a secret (I12), only somebody
outside can tell: the scenario tests are.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis

from ledger.audit import Audit
from ledger.cancelled import obeyed
from ledger.clients import holder
from ledger.commit import Position
from ledger.fcall import PartitionState, key_names, withheld_name
from ledger.functions import Partition, open_hold_of, withheld_of
from ledger.migrate import migrations
from ledger.postgres import one_row
from ledger.recovery import ailment
from ledger.stream import place_of
from ledger.verify import verify

_SHOWN_MAX = 3  # examples in one line
_LAG_S_WARNED, _LAG_S_MAX = 5.0, 60.0
_OVERDUE_MS_MAX = 10_000  # the sweeper comes every second
_RECOVERIES_MAX = 3  # of a partition in ten minutes
_SERVE = "start `tollgate serve`; if it runs, its log says why it has not been done"

_PARTS = """
    SELECT number, generation, state, lease_until < now() AS lapsed, version, activated_version,
           watermark_generation, watermark_id, (SELECT id::text FROM installation) AS install
    FROM part ORDER BY number
"""
_RECOVERIES = """
    SELECT partition, count(*) FROM recovery_log WHERE started_at > now() - interval '10 minutes'
    GROUP BY partition HAVING count(*) > $1 ORDER BY partition
"""
_DEFAULTS = """
    SELECT (SELECT count(*) FROM usage_record_default)
         + (SELECT count(*) FROM call_log_standard_default)
"""
_TOMORROW = """
    SELECT to_regclass('usage_record_' || to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD'))
        IS NOT NULL
"""
_TRIGGERS = """
    SELECT tgrelid::regclass || ': ' || tgname FROM pg_trigger AS t
    JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE NOT tgisinternal AND tgenabled <> 'O' AND c.relnamespace = 'public'::regnamespace
    ORDER BY 1
"""
_LETTERS = """
    SELECT count(*), coalesce(extract(epoch FROM now() - min(at)), 0) FROM dead_letter
    WHERE resolved_at IS NULL
"""
_WITHDRAWALS = """
    SELECT id::text FROM withdrawal
    WHERE released_at IS NULL AND asked_at < now() - interval '5 minutes' ORDER BY asked_at
"""
# What a wallet may be below zero by: charges above their holds, ends that came late, corrections.
_BELOW_ZERO = """
    SELECT w.id::text AS wallet, w.spent - w.base AS below, coalesce(r.over, 0)
        + coalesce(c.over, 0) AS explained
    FROM wallet AS w LEFT JOIN LATERAL (
        SELECT sum(CASE WHEN NOT moved OR EXISTS (
            -- Held again, or paid from what was owed, whatever was free.
            SELECT FROM recovery_log AS l WHERE l.partition = u.partition
              AND l.started_at BETWEEN u.admitted_at AND u.arrived_at
        ) OR EXISTS (
            SELECT FROM call_log AS c WHERE c.call_id = u.call_id AND 'grace' = ANY (c.flags)
        ) OR EXISTS (
            SELECT FROM grace_call AS g WHERE g.call_id = u.call_id
        ) THEN charge ELSE greatest(charge - held, 0) END)::bigint AS over
        FROM usage_record AS u WHERE wallet_id = w.id AND w.base < w.spent
    ) AS r ON true LEFT JOIN LATERAL (
        SELECT sum(greatest(charge - old_charge, 0))::bigint AS over
        FROM correction WHERE wallet_id = w.id AND w.base < w.spent
    ) AS c ON true
    WHERE w.base < w.spent ORDER BY w.id
"""


class Grade(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"  # somebody will have to act
    PROBLEM = "problem"  # somebody must act: a promise is broken, or would be


class Finding(NamedTuple):
    """What one check found; `todo` is empty if there is nothing to do."""

    grade: Grade
    check: str
    said: str
    todo: str = ""


def good(check: str, said: str) -> Finding:
    """Nothing to do."""
    return Finding(Grade.OK, check, said)


def judged(
    check: str, problems: Sequence[str], warnings: Sequence[str], *, todo: str, otherwise: str
) -> Finding:
    """One finding of all there is to say, the worst first; `otherwise`: of nothing."""
    said = [*problems, *warnings]
    if not said:
        return good(check, otherwise)
    more = f"; and {len(said) - _SHOWN_MAX} more" if len(said) > _SHOWN_MAX else ""
    grade = Grade.PROBLEM if problems else Grade.WARNING
    return Finding(grade, check, "; ".join(said[:_SHOWN_MAX]) + more, todo)


class Ledger(NamedTuple):
    """What is examined. The connection must have no limit for statements: all is read."""

    connection: asyncpg.Connection
    redis: Redis
    partitions: int  # as configured


Check = Callable[[Ledger], Awaitable[Finding]]


async def schema(ledger: Ledger) -> Finding:
    """Whether the tables are this release's."""
    ours = migrations()[-1].number
    there = await ledger.connection.fetchval(
        "SELECT CASE WHEN to_regclass('migration') IS NULL THEN 0 ELSE 1 END"
    )
    found = await ledger.connection.fetchval("SELECT max(number) FROM migration") if there else 0
    if found is None or found < ours:
        said = f"the database is at migration {found or 0}, this release needs {ours}"
        return Finding(Grade.PROBLEM, "schema", said, "run `tollgate migrate`")
    if found > ours:
        said = f"the database is at migration {found}, of a newer release than this one ({ours})"
        return Finding(Grade.WARNING, "schema", said, "bring this gateway to the same release")
    return good("schema", f"migration {ours}, this release's")


async def days(ledger: Ledger) -> Finding:
    """Whether every record is in the table of its day, and tomorrow has one."""
    strays = await ledger.connection.fetchval(_DEFAULTS)
    if strays:
        said = f"{strays} records are in no day's table: their ids are from another time"
        todo = "put the clock of the gateway right that made them; `tollgate verify` still holds"
        return Finding(Grade.PROBLEM, "days of records", said, todo)
    if not await ledger.connection.fetchval(_TOMORROW):
        said = "tomorrow's table is not there"
        return Finding(Grade.PROBLEM, "days of records", said, _SERVE)
    return good("days of records", "all in their days, tomorrow is prepared")


async def append_only(ledger: Ledger) -> Finding:
    """Whether Postgres still refuses to change what was once written."""
    found = [row[0] for row in await ledger.connection.fetch(_TRIGGERS)]
    todo = "somebody switched it off: `ALTER TABLE ... ENABLE TRIGGER`, then `tollgate verify`"
    return judged("append-only", found, [], todo=todo, otherwise="records and postings stand")


async def books(ledger: Ledger) -> Finding:
    """Whether everything kept as a sum is the sum of what it is kept of."""
    found = [str(one) for one in await verify(ledger.connection)]
    todo = "`tollgate verify` lists them all; a difference is a bug or a hand in the tables"
    return judged("books", found, [], todo=todo, otherwise="records, postings, sums, chains agree")


async def dead_letters(ledger: Ledger) -> Finding:
    """Whether anything waits that nobody could read."""
    count, age_s = await one_row(ledger.connection, _LETTERS)
    if count:
        said = f"{count} open, the oldest for {age_s / 3600:.1f} h"
        todo = "`tollgate dead-letters list`, then resolve each"
        return Finding(Grade.PROBLEM, "dead letters", said, todo)
    return good("dead letters", "none open")


async def withdrawals(ledger: Ledger) -> Finding:
    """Whether money that was to leave is stuck between Redis and Postgres."""
    rows = await ledger.connection.fetch(_WITHDRAWALS)
    said = [f"{row['id']} has not been concluded for 5 minutes" for row in rows]
    return judged("withdrawals", [], said, todo=_SERVE, otherwise="none is stuck")


async def partitions(ledger: Ledger) -> Finding:
    """Whether each is active, in the same generation on both sides, and never went back (I10)."""
    problems, warnings = [], []
    rows = await ledger.connection.fetch(_PARTS)
    if len(rows) != ledger.partitions:
        said = f"Postgres has {len(rows)}, ledger.partitions says {ledger.partitions}: put it back"
        problems.append(said)
    for row in rows:
        partition = Partition(ledger.redis, row["number"])
        state = await partition.state()
        place = f"partition {row['number']}"
        if state.install not in {"", row["install"]}:
            said = f"{place} in Redis is another deployment's, {state.install}: mend redis.url"
            problems.append(said)
        elif row["state"] == "recovering" and not row["lapsed"]:
            warnings.append(f"{place} is being recovered")
        elif row["state"] == "new" and not state.generation:
            warnings.append(f"{place} was never started")
        elif row["state"] != "active":
            problems.append(f"{place} is {row['state']} and waits for a recovery")
        else:
            problems += [f"{place}: {said}" for said in await _gone_back(partition, state, row)]
    for number, count in await ledger.connection.fetch(_RECOVERIES, _RECOVERIES_MAX):
        warnings.append(f"partition {number} was recovered {count} times in 10 minutes")
    said = f"{len(rows)} active, in the generations of Postgres"
    return judged("partitions", problems, warnings, todo=_SERVE, otherwise=said)


async def _gone_back(partition: Partition, state: PartitionState, row: asyncpg.Record) -> list[str]:
    generation = row["generation"]
    said = []
    if row["watermark_generation"] > generation:
        said.append(f"its watermark is of generation {row['watermark_generation']}")
    cause = ailment(state, generation=generation, version=row["version"])
    if cause:
        return [*said, cause]
    image = await partition.snap(generation, [])
    if row["watermark_generation"] == generation:
        flushed, there = Position(generation, row["watermark_id"]), image.last_id
        if place_of(flushed.stream_id) > place_of(there):
            said.append(f"Postgres has entries up to {flushed.stream_id}, Redis only to {there}")
    return said


async def flushing(ledger: Ledger) -> Finding:
    """Whether what has ended is on its way into Postgres (I7)."""
    problems, warnings = [], []
    for row in await ledger.connection.fetch(_PARTS):
        partition = Partition(ledger.redis, row["number"])
        after = row["watermark_generation"], row["watermark_id"]
        entries = await partition.peek(*after, 1)
        if not entries:
            continue
        now_ms = (await partition.state()).now_ms
        lag_s = (now_ms - place_of(entries[0].id)[0]) / 1000
        said = f"partition {row['number']} has an end that waits for {lag_s:.0f} s"
        if lag_s > _LAG_S_MAX:
            problems.append(said)
        elif lag_s > _LAG_S_WARNED:
            warnings.append(said)
    return judged("flushing", problems, warnings, todo=_SERVE, otherwise="no end waits for long")


async def holds(ledger: Ledger) -> Finding:
    """Whether what is held is what open calls and withdrawals hold, and each ends in time (I4)."""
    problems: list[str] = []
    warnings: list[str] = []
    count = 0
    for row in await ledger.connection.fetch(_PARTS):
        partition, place = Partition(ledger.redis, row["number"]), f"partition {row['number']}"
        state = await partition.state()
        if row["state"] != "active" or not state.is_active():
            continue
        found = await _held(ledger.redis, row["number"], state.generation)
        count += found.open
        for wallet in sorted(found.kept.keys() | found.summed.keys()):
            kept, summed = found.kept[wallet], found.summed[wallet]
            if kept != summed:
                problems.append(f"{wallet} holds {kept} nano-USD, open calls hold {summed}")
        overdue_ms = state.now_ms - found.first_due_ms if found.open else 0
        if overdue_ms > _OVERDUE_MS_MAX:
            warnings.append(f"{place} has a hold that is overdue by {overdue_ms // 1000} s")
    said = f"{count} open, and what is held is what they hold"
    todo = (
        "the audit of a running `tollgate serve` recovers such a partition; if it stays: report it"
    )
    return judged("holds", problems, warnings, todo=todo, otherwise=said)


class _Held(NamedTuple):
    """What is held in a partition, at one moment."""

    kept: Counter[str]  # wallet -> what Redis keeps as held
    summed: Counter[str]  # wallet -> what open calls and withdrawals hold
    open: int
    first_due_ms: int


async def _held(redis: Redis, number: int, generation: int) -> _Held:
    keys = key_names(number, generation)
    withheld_keys = (*keys, withheld_name(number))
    server = await holder(redis, keys[0])  # one node of a Cluster has all of them
    async with server.pipeline(transaction=True) as pipe:
        _ = pipe.execute_command("FCALL_RO", "tg_open", len(keys), *keys, generation)
        _ = pipe.execute_command(
            "FCALL_RO", "tg_withheld", len(withheld_keys), *withheld_keys, generation
        )
        _ = pipe.execute_command("HGETALL", keys[4])
        opened, withheld, kept = await obeyed(pipe.execute())
    rows = [open_hold_of(row) for row in opened]
    summed: Counter[str] = Counter()
    for hold in rows:
        for wallet in (hold.wallet, *(f"{cap}@{start}" for cap, start, _ in hold.windows)):
            summed[wallet] += hold.amount
    for one in map(withheld_of, withheld):
        summed[one.wallet] += one.amount if one.generation == generation else 0
    sums = Counter({wallet.decode(): int(amount) for wallet, amount in kept.items()})
    return _Held(sums, summed, len(rows), min((row.deadline_ms for row in rows), default=0))


async def mirror(ledger: Ledger) -> Finding:
    """Whether Redis has of each wallet what Postgres says, to the nano-USD (I5)."""
    rows = await ledger.connection.fetch(_PARTS)
    audit = Audit("", ledger.redis, partitions=(), on_drift=lambda _: None, only_looks=True)
    problems, warnings = [], []
    for row in rows:
        drifts = await audit.compare(ledger.connection, Partition(ledger.redis, row["number"]), row)
        if drifts is None:
            warnings.append(f"partition {row['number']} cannot be compared now")
            continue
        problems += [
            f"{drift.wallet} has {drift.nanos:+} nano-USD too much in Redis ({drift.cause})"
            for drift in drifts
        ]
    todo = (
        "see `tollgate_ledger_drift_nanousd`; the always-on audit pages, and recovers what is lost"
    )
    said = f"{audit.tallies.wallets} wallets and budgets in Redis are as in Postgres"
    return judged("wallets", problems, warnings, todo=todo, otherwise=said)


async def below_zero(ledger: Ledger) -> Finding:
    """Whether every wallet below zero is there by what may take it there (I6)."""
    problems, warnings = [], []
    for wallet, below, explained in await ledger.connection.fetch(_BELOW_ZERO):
        said = f"{wallet} is {below} nano-USD below zero"
        if below > explained:
            problems.append(f"{said}, of which {below - explained} have no cause")
        else:
            warnings.append(f"{said}, by charges above holds, late and re-held calls, grace")
    todo = "ask the organization to pay, or `tollgate credit adjust`; without a cause: `verify`"
    return judged("below zero", problems, warnings, todo=todo, otherwise="no wallet is")


CHECKS: tuple[tuple[str, Check], ...] = (
    ("days of records", days),
    ("append-only", append_only),
    ("partitions", partitions),
    ("flushing", flushing),
    ("holds", holds),
    ("wallets", mirror),
    ("below zero", below_zero),
    ("dead letters", dead_letters),
    ("withdrawals", withdrawals),
    ("books", books),
)
"""All that need the tables of this release; `schema` says whether those are there."""

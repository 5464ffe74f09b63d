"""Where a process may die: the steps of a call, of the flusher and of a recovery.

Each is a function that is there in the product; the process is killed right before it begins or
right after it has returned, so that between two neighbours every await has its death.
"""

from enum import Enum
from typing import NamedTuple


class Cause(Enum):
    """What makes a step happen."""

    CALLS = "calls"
    CREDIT = "credit is granted"
    ORPHAN = "a worker has left its journal"
    LOSS = "Redis lost everything"


class Point(NamedTuple):
    """A step: `role` is the process it happens in."""

    role: str
    module: str
    name: str
    cause: Cause = Cause.CALLS

    def __str__(self) -> str:
        return f"{self.role}/{self.module}:{self.name}"


def _points(role: str, cause: Cause, named: str) -> tuple[Point, ...]:
    made = []
    for line in named.split("\n"):
        module, *names = line.split()
        made += [Point(role, module, name, cause) for name in names]
    return tuple(made)


_CALL = """\
gateway.auth Authenticator.lookup
gateway.proxy.calls Calls._admit Calls._held Calls._dispatch Calls._answer Calls._end Calls._close
ledger.conveyor Conveyor.hold Conveyor.settle
ledger.belt Belt._flush Belt._answered Belt._renew_all
ledger.lane Lane._holds_answered Lane._ends_answered
ledger.wire Wire.send
ledger.journal Journal.dispatched Journal.finished Journal.sync Journal._write_mark
ledger.appender Appender.append Appender.do
gateway.proxy.forward open_answer
gateway.upstream.client Upstream.send
gateway.upstream.pool Pool.connect
gateway.proxy.relay relay_body relay_stream
gateway.proxy.finish end_of
gateway.proxy.exchange Exchange.start Exchange.finish Exchange.answer
gateway.journals Journals.on_settled Journals._prove
ledger.rollcall Presence._beat"""

_ADOPTION = """\
gateway.journals Journals._take_over Journals._lost
ledger.segments Folder.create Folder.claim Folder.remove"""

_WORKER_IN_RECOVERY = """\
gateway.journals Journals.on_generation Journals._owe
ledger.lane Lane._state_answered Lane._needs_recovery
ledger.rollcall Signature.give"""

_FLUSHER = """\
ledger.flusher _read_parts Flusher._tend Flusher._prove
ledger.drain Drain.step Drain.make_days acknowledge
ledger.commit commit_batch _write write_records _copy_records _write_balances _close
ledger.sums write_wallets write_windows write_rollups
ledger.functions Partition.peek Partition.ack Partition.sweep
ledger.withheld conclude
ledger.audit Audit.audit"""

_PUSH = """\
ledger.bases push_bases _mark_loaded
ledger.functions Partition.set_bases"""

_RECOVERY = """\
ledger.recovery Recovery.recover Recovery._claim Recovery._prove _load call_roll
ledger.remainder drain_stream drain_older
ledger.functions Partition.freeze Partition.load Partition.activate"""

POINTS: tuple[Point, ...] = (
    *_points("worker", Cause.CALLS, _CALL),
    *_points("worker", Cause.ORPHAN, _ADOPTION),
    *_points("worker", Cause.LOSS, _WORKER_IN_RECOVERY),
    *_points("control", Cause.CALLS, _FLUSHER),
    *_points("control", Cause.CREDIT, _PUSH),
    *_points("control", Cause.LOSS, _RECOVERY),
)

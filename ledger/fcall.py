"""What the calls of Redis' functions look like: keys, arguments, answers and refusals.

The functions themselves, with their contracts, are `lua/tollgate.lua`.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError  # noqa: A004 - redis-py's, which is no OSError

from ledger.admission import End, Held, Hold, Refused
from ledger.cancelled import obeyed
from ledger.proof import ordered

Word: TypeAlias = bytes | str | int

KEY_COUNT = 11
_LOOK_EVERY_S = 1.0
_SILENCES_MAX = 2
# Errors of the server's own. After these nothing of the call was done, so nothing is held by it.
NOT_SERVING = frozenset({"READONLY", "LOADING", "MASTERDOWN"})
NOTHING_RAN = NOT_SERVING | {
    "OOM",
    "NOPERM",
    "NOAUTH",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
}
OF_ENDS = frozenset({"tg_settle", "tg_late"})
LOGGED = frozenset({b"S", b"D", b"L"})  # how an end's answer begins that a stream has
# A Cluster's: nothing of the call was done, and here it will not be, or not yet.
ELSEWHERE = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})
_NAMES = ("meta", "free", "base", "spent", "held", "ver", "holds", "due", "rates", "slots")
_encode = msgspec.msgpack.Encoder().encode


class Epoch(Exception):
    """The partition's data is not of this generation, or not in a state that allows the call.

    `generation` and `state` are what Redis holds: 0 and "" when there is nothing, or no library.
    """

    def __init__(self, partition: int, generation: int = 0, state: str = "") -> None:
        super().__init__(f"partition {partition} is in generation {generation}, state {state!r}")
        self.partition, self.generation, self.state = partition, generation, state


class PartitionState(NamedTuple):
    """What `meta` says, and whether this very server wrote it last."""

    generation: int = 0  # 0: there is no data
    sequence_matches: bool = False  # False: the next write is refused until a recovery has run
    state: str = ""  # "A" active, "R" recovering, "" nothing there
    version: int = 0  # the highest base version seen
    install: str = ""  # the deployment that owns the data
    now_ms: int = 0  # the server's clock

    def is_active(self) -> bool:
        """Whether calls are admitted."""
        return self.sequence_matches and self.state == "A"


class Ended(NamedTuple):
    """What became of an end: `stream_id` is where the log has it, "" when it has not."""

    outcome: str  # "settled" | "late" | "duplicate" | "unknown" (no hold) | "open" (send settle)
    stream_id: str = ""


class Renewal(NamedTuple):
    """A new lease for an open call, with what it has consumed so far."""

    call_id: bytes
    lease_ms: int = 60_000
    charge: int = -1  # nano-USD so far; -1: not known, or no news
    record: bytes = b""  # what the sweeper would log; empty: what it has


def renewal_of(hold: Hold) -> Renewal:
    """A new lease, and no news."""
    return Renewal(hold.call_id, hold.lease_ms)


def key_names(partition: int, generation: int) -> tuple[str, ...]:
    """The keys of a partition, in the order in which every function takes them."""
    tag = f"tg:{{p{partition:02d}}}:"
    return (*(tag + name for name in _NAMES), f"{tag}log:{generation}")


def withheld_name(partition: int) -> str:
    """The twelfth key, of the functions by which money leaves."""
    return f"tg:{{p{partition:02d}}}:withheld"


def hold_arguments(*holds: Hold) -> list[bytes]:
    """The three arguments of each hold, for tg_hold, tg_extend and tg_rehold."""
    words: list[bytes] = []
    for hold in holds:
        words += (hold[0], _encode(hold[1:8]), hold[8])
    return words


def end_arguments(*ends: End) -> list[bytes]:
    """The three arguments of each end, for tg_settle and tg_late."""
    words: list[bytes] = []
    for call_id, partition, wallet, kind, charge, record, caps, tokens in ends:
        words += (call_id, _encode((partition, wallet, kind, charge, caps, tokens)), record)
    return words


def owe_arguments(generation: int, *owed: Hold) -> list[bytes]:
    """The three arguments of each sum owed, for tg_owe."""
    words: list[bytes] = []
    for hold in owed:
        words += (hold[0], _encode((*hold[1:8], generation)), b"")
    return words


def late_arguments(keepers: Mapping[bytes, bytes], *ends: End) -> list[bytes]:
    """As `end_arguments`, for tg_late: with the id of the sum owed that keeps an end's charge."""
    words: list[bytes] = []
    for call_id, partition, wallet, kind, charge, record, caps, tokens in ends:
        head = (partition, wallet, kind, charge, caps, tokens, keepers.get(call_id, b"").decode())
        words += (call_id, _encode(head), record)
    return words


def renewal_arguments(*renewals: Renewal) -> list[bytes]:
    """The three arguments of each renewal, for tg_renew."""
    words: list[bytes] = []
    for renewal in renewals:
        words += (renewal[0], _encode(renewal[1:3]), renewal[3])
    return words


def hold_answer(answer: list[Any], generation: int) -> Held | Refused:
    """The answer to a hold or an extension; `ValueError` if Redis found it flawed."""
    if answer[0] == 1:
        return Held(generation, answer[1], tuple(answer[2:]))
    if answer[0] == 0:
        _, code, scope, free, held, retry_after_ms = answer
        return Refused(code.decode(), scope.decode(), free, held, retry_after_ms)
    raise ValueError(f"not a hold: {answer[1].decode()}")


_OUTCOMES = {"S": "settled", "L": "late", "D": "duplicate", "U": "unknown", "O": "open"}


def end_answer(answer: bytes) -> Ended:
    """The answer to settle or late; `ValueError` if Redis found the end flawed."""
    text = answer.decode()
    outcome = _OUTCOMES.get(text[:1])
    if outcome is None:
        raise ValueError(f"not an end: {text[1:]}")
    return Ended(outcome, text[1:])


def highest_place(answers: list[bytes]) -> str:
    """The highest stream id in the answers to ends that were logged, in the order of their step."""
    last = answers[-1]
    if last.startswith(b"D"):  # logged before, in whatever order; what is new is above all else
        last = max(answers, key=lambda answer: ordered(answer[1:].decode()))
    return last[1:].decode()


def state_answer(answer: list[Any]) -> PartitionState:
    """The answer to tg_state."""
    generation, _, state, version, install, matches, now_ms = answer
    return PartitionState(
        int(generation), matches == 1, state.decode(), int(version), install.decode(), now_ms
    )


def refusal(message: str, partition: int) -> Epoch | ValueError | None:
    """The error a refused function call stands for; None if it is not one of ours."""
    code, _, rest = message.partition(" ")
    if code in {"EPOCH", "STATE"}:
        generation, _, state = rest.partition(" ")
        return Epoch(partition, int(generation), state.replace("-", ""))
    if message.removeprefix("ERR ").startswith("Function not found"):
        return Epoch(partition)
    return ValueError(rest) if code == "ARGS" else None


async def execute(client: Redis, *arguments: Any) -> Any:
    """One command, its answer as Redis gave it."""
    return await obeyed(client.execute_command(*arguments))  # type: ignore[no-untyped-call]  # redis-py's


async def heard(subscription: PubSub) -> AsyncIterator[dict[str, Any]]:
    """What a subscription brings. A cancellation is obeyed within `_LOOK_EVERY_S`.

    redis-py's own `listen` connects and sends by itself, and waits on after it lost a cancellation.
    A server that was cut off, or replaced by another, says nothing and never closes: one that does
    not answer a ping for `_SILENCES_MAX` looks is given up with a `ConnectionError`, redis-py's.
    """
    silences = 0
    while silences <= _SILENCES_MAX:
        message = await obeyed(subscription.get_message(timeout=_LOOK_EVERY_S))
        if message is None:
            silences += 1
            await obeyed(subscription.ping())
        else:
            silences = 0
            if message["type"] != "pong":
                yield message
    raise ConnectionError("the server of a subscription is silent")

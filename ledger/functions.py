"""The functions that Redis runs for the ledger: how they are loaded, called and answered.

`Partition` calls them one by one, for the jobs; `ledger.conveyor` calls them in batches.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ledger.admission import End, Held, Hold, Refused
from ledger.clients import holder
from ledger.fcall import (
    Ended,
    Epoch,
    PartitionState,
    Renewal,
    end_answer,
    end_arguments,
    execute,
    hold_answer,
    hold_arguments,
    key_names,
    late_arguments,
    owe_arguments,
    refusal,
    renewal_arguments,
    state_answer,
    withheld_name,
)
from ledger.library import install, is_newer

__all__ = [
    "Base",
    "Ended",
    "Entry",
    "Epoch",
    "Image",
    "OpenHold",
    "Partition",
    "PartitionState",
    "Renewal",
    "WalletImage",
    "WalletState",
    "Withheld",
    "install",
]

_LOGS_MAX = 500  # streams looked for in one step of Redis
_encode = msgspec.msgpack.Encoder().encode
_decode_windows = msgspec.msgpack.Decoder(tuple[tuple[str, int, int], ...]).decode


class OpenHold(NamedTuple):
    """A hold that has not ended, as Redis keeps it."""

    call_id: bytes
    deadline_ms: int
    wallet: str
    amount: int
    windows: tuple[tuple[str, int, int], ...]  # (cap id, window start ms, limit) it is held in
    ticket: bytes


class WalletState(NamedTuple):
    """What Postgres says of a wallet, for a load; `spent` counts what the stream brought it."""

    wallet: str
    base: int
    spent: int
    version: int


class Base(NamedTuple):
    """A base that Postgres decided. `spent` is used only where the wallet is missing in Redis.

    `ended`: the wallet's withdrawals that Postgres has ended; what is withheld for them is given
    back. One that is booked is part of `base`.
    """

    wallet: str
    base: int
    version: int
    cause: str
    spent: int = 0
    ended: tuple[str, ...] = ()  # uuids


class Withheld(NamedTuple):
    """What Redis keeps back for a withdrawal; of another generation: nothing any more."""

    id: str
    generation: int
    wallet: str
    amount: int


class WalletImage(NamedTuple):
    """One wallet in Redis. free + held + spent = base, always."""

    wallet: str
    free: int
    held: int
    base: int
    spent: int
    version: int


class Image(NamedTuple):
    """Wallets as they were when `last_id` was the last entry of the generation's stream."""

    last_id: str
    wallets: tuple[WalletImage, ...]
    cursor: str  # "0": there are no more


class Entry(NamedTuple):
    """One entry of the stream, unparsed: a foreign field must not stop the reader."""

    id: str
    fields: dict[bytes, bytes]


class Partition:
    """The functions of one partition, a round trip each.

    Everything but `state` takes the generation it believes in and raises `Epoch` when Redis is not
    there, having changed nothing; `ValueError` when an argument is wrong.
    """

    def __init__(self, client: Redis, number: int) -> None:
        self.number = number
        self._client = client

    async def state(self) -> PartitionState:
        """What the partition says of itself; the default state when there is nothing to ask."""
        try:
            return state_answer(await self._call("tg_state", 0, read_only=True))
        except Epoch:
            return PartitionState()

    async def hold(self, generation: int, hold: Hold) -> Held | Refused:
        """Admit a call or refuse it; asking again with its id changes nothing."""
        (answer,) = await self._call("tg_hold", generation, *hold_arguments(hold))
        return hold_answer(answer, generation)

    async def extend(self, generation: int, hold: Hold) -> Held | Refused:
        """Raise an open hold to the total `hold.amount` and renew its lease."""
        (answer,) = await self._call("tg_extend", generation, *hold_arguments(hold))
        return hold_answer(answer, generation)

    async def rehold(self, generation: int, hold: Hold) -> bool:
        """Hold for a call under way, unasked; False if it has ended or its wallet is unknown."""
        (answer,) = await self._call("tg_rehold", generation, *hold_arguments(hold))
        if answer < 0:
            raise ValueError("not a hold")
        return bool(answer)

    async def settle(self, generation: int, end: End) -> Ended:
        """End an open hold and log it."""
        (answer,) = await self._call("tg_settle", generation, *end_arguments(end))
        return end_answer(answer)

    async def late(self, generation: int, end: End, *, owed: bytes = b"") -> Ended:
        """Log an end whose hold is unknown; Postgres decides what it is worth.

        `owed` is the sum that keeps its charge, if one does: then it is taken from there.
        """
        arguments = late_arguments({end.call_id: owed}, end)
        (answer,) = await self._call("tg_late", generation, *arguments)
        return end_answer(answer)

    async def owe(self, generation: int, owed: Hold) -> bool:
        """Hold, unasked, what ended calls charge that are to be told as late; False if the wallet
        is unknown.
        """
        (answer,) = await self._call("tg_owe", generation, *owe_arguments(generation, owed))
        if answer < 0:
            raise ValueError("not a sum")
        return bool(answer)

    async def acquit(self, generation: int, *owed: bytes) -> int:
        """Give back what is left of these sums; how many there were."""
        return int(await self._call("tg_acquit", generation, *owed))

    async def renew(self, generation: int, renewals: Sequence[Renewal]) -> list[bool]:
        """New deadlines; False for each call that has no open hold."""
        flat = [part for renewal in renewals for part in renewal_arguments(renewal)]
        answers = await self._call("tg_renew", generation, *flat)
        if -1 in answers:
            raise ValueError("not a renewal")
        return [answer == 1 for answer in answers]

    async def sweep(self, generation: int, limit: int) -> int:
        """End overdue holds, at most `limit`; how many it were."""
        return int(await self._call("tg_sweep", generation, limit))

    async def ack(self, generation: int, call_ids: Sequence[bytes]) -> int:
        """Forget ends that Postgres has; how many were still kept."""
        return int(await self._call("tg_ack", generation, *call_ids))

    async def set_base(
        self, generation: int, wallet: str, *, base: int, version: int, cause: str, spent: int = 0
    ) -> bool:
        """Take a base decided by Postgres; False if this version or a newer one is there."""
        (taken,) = await self.set_bases(generation, [Base(wallet, base, version, cause, spent)])
        return taken

    async def set_bases(self, generation: int, bases: Sequence[Base]) -> list[bool]:
        """`set_base` for many wallets in one step."""
        items = [
            _encode((b.wallet, str(b.base), b.version, b.cause, str(b.spent), b.ended))
            for b in bases
        ]
        gives_back = any(base.ended for base in bases)
        answers = await self._call("tg_set_base", generation, *items, withheld=gives_back)
        if -1 in answers:
            raise ValueError(f"not a base: {bases[answers.index(-1)]}")
        return [answer == 1 for answer in answers]

    async def withhold(
        self, generation: int, withdrawal_id: str, *, wallet: str, amount: int
    ) -> Held | Refused:
        """Hold what is to leave a wallet, or refuse; asking again with its id changes nothing.

        Only a `Base` that names it as ended gives it back.
        """
        arguments = (withdrawal_id, wallet, amount)
        answer = await self._call("tg_withhold", generation, *arguments, withheld=True)
        return hold_answer(answer, generation)

    async def withheld(self, generation: int) -> list[Withheld]:
        """Everything that is withheld, what was in older generations included."""
        rows = await self._call("tg_withheld", generation, read_only=True, withheld=True)
        return [withheld_of(row) for row in rows]

    async def forget(self, generation: int, wallets: Sequence[str]) -> int:
        """Drop cap windows that are over and hold nothing; how many it dropped."""
        return int(await self._call("tg_forget", generation, *wallets))

    async def check_freeze(self) -> None:
        """Raise what the server would refuse a freeze with, as having no replicas; no change."""
        with suppress(ValueError):  # it ran, and there is no generation 0
            await self._call("tg_freeze", 0, "")

    async def freeze(
        self, generation: int, *, install: str = "", proven: tuple[int, str] | None = None
    ) -> None:
        """Begin a recovery: nothing moves any more. `generation` must be above every one seen,
        of which the highest is in the `Epoch` that refuses it.

        `install` names the deployment; `ValueError` if the data belongs to another one. `proven`
        is how far Postgres has the older streams, for `proven_before`. What is held stays held, for
        activation and the sweeper.
        """
        at = "" if proven is None else f"{proven[0]} {proven[1]}"
        await self._call("tg_freeze", generation, install, at)

    async def proven_before(self) -> tuple[int, str] | None:
        """How far, generation and stream id, Postgres had the older streams at the last freeze."""
        text = await execute(self._client, "HGET", key_names(self.number, 0)[0], "proven")
        generation, _, stream_id = (text or b"").decode().partition(" ")
        return (int(generation), stream_id) if stream_id else None

    async def load(self, generation: int, wallets: Sequence[WalletState]) -> None:
        """While recovering, set wallets to what Postgres says; in parts, as often as needed."""
        items = [_encode((w.wallet, str(w.base), str(w.spent), w.version)) for w in wallets]
        await self._call("tg_load", generation, *items)

    async def activate(self, generation: int, version: int) -> int:
        """End the recovery; `version` is the highest base version loaded. How many are open."""
        return int(await self._call("tg_activate", generation, version))

    async def open_holds(self, generation: int) -> list[OpenHold]:
        """Every open hold, by deadline."""
        rows = await self._call("tg_open", generation, read_only=True)
        return [open_hold_of(row) for row in rows]

    async def snap(self, generation: int, wallets: Sequence[str]) -> Image:
        """These wallets at one stream id; one that is missing in Redis is left out."""
        return _image(await self._call("tg_snap", generation, "-", *wallets, read_only=True))

    async def scan(self, generation: int, *, cursor: str = "0", count: int = 500) -> Image:
        """About `count` wallets at one stream id, and the cursor of the next page."""
        return _image(await self._call("tg_snap", generation, cursor, count, read_only=True))

    async def peek(self, generation: int, after: str, limit: int) -> list[Entry]:
        """The entries of a generation's stream after this id, oldest first."""
        rows = await execute(
            self._client, "XRANGE", self._log(generation), f"({after}", "+", "COUNT", limit
        )
        return [Entry(id_.decode(), _fields(fields)) for id_, fields in rows or []]

    async def trim(self, generation: int, before: str) -> int:
        """Drop about every entry before this id; how many it were."""
        return int(
            await execute(self._client, "XTRIM", self._log(generation), "MINID", "~", before)
        )

    async def is_newer(self) -> bool:
        """Whether its library is a newer release's, which may log what this one cannot read."""
        return await is_newer(await holder(self._client, key_names(self.number, 0)[0]))

    async def drop_log(self, generation: int) -> None:
        """Drop the stream of an older generation, once it is drained and its day is over."""
        await execute(self._client, "UNLINK", self._log(generation))

    async def next_log(self, first: int, before: int) -> int:
        """The first generation from `first` on that has a stream; `before` if none below it has."""
        for start in range(first, before, _LOGS_MAX):
            generations = range(start, min(start + _LOGS_MAX, before))
            if await execute(self._client, "EXISTS", *map(self._log, generations)):
                for generation in generations:
                    if await execute(self._client, "EXISTS", self._log(generation)):
                        return generation
        return before

    async def log_length(self, generation: int) -> int:
        """How many entries a generation's stream holds; 0 if there is none."""
        return int(await execute(self._client, "XLEN", self._log(generation)))

    async def log_bytes(self, generation: int) -> int:
        """About how much memory a generation's stream takes."""
        answer = await execute(self._client, "MEMORY USAGE", self._log(generation))
        return int(answer or 0)

    def _log(self, generation: int) -> str:
        return key_names(self.number, generation)[-1]

    async def _call(
        self,
        function: str,
        generation: int,
        *arguments: Any,
        read_only: bool = False,
        withheld: bool = False,
    ) -> Any:
        keys = key_names(self.number, generation)
        if withheld:
            keys = (*keys, withheld_name(self.number))
        verb = "FCALL_RO" if read_only else "FCALL"
        try:
            return await execute(
                self._client, verb, function, len(keys), *keys, generation, *arguments
            )
        except ResponseError as error:
            refused = refusal(str(error), self.number)
            if refused is None:
                raise
            raise refused from error


def open_hold_of(row: list[Any]) -> OpenHold:
    """A row of what `tg_open` answers."""
    call_id, deadline, wallet, amount, windows, ticket = row
    return OpenHold(
        call_id, int(deadline), wallet.decode(), int(amount), _decode_windows(windows), ticket
    )


def withheld_of(row: list[Any]) -> Withheld:
    """A row of what `tg_withheld` answers."""
    return Withheld(row[0].decode(), int(row[1]), row[2].decode(), int(row[3]))


def _image(answer: list[Any]) -> Image:
    last_id, cursor, *rows = answer
    return Image(
        last_id.decode(),
        tuple(WalletImage(row[0].decode(), *map(int, row[1:])) for row in rows),
        cursor.decode(),
    )


def _fields(flat: list[bytes] | dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Field pairs as they come from this client: a list, or a dict with RESP3 or a callback."""
    if isinstance(flat, dict):
        return flat
    return dict(zip(flat[::2], flat[1::2], strict=False))

"""A partition that is ready to admit, and the calls of the tests of admission."""

import os
from typing import Any

from redis.asyncio import Redis

from ledger.admission import Cap, End, Held, Hold
from ledger.fcall import execute, key_names
from ledger.functions import Partition, WalletImage, WalletState, install
from ledger.money import Nanos
from ledger.record import EndKind

NUMBER = 7
WALLET = "8a1c9a4e-0000-4000-8000-000000000001"
FAR_MS = 2**50  # a window start that does not come


async def ready(
    client: Redis, *, number: int = NUMBER, generation: int = 1, base: int = 1_000
) -> Partition:
    """A partition with one wallet, in this generation."""
    await install(client)
    partition = Partition(client, number)
    await recovered(partition, generation, base=base)
    return partition


async def recovered(partition: Partition, generation: int, *, base: int = 1_000) -> None:
    """Bring a partition into a generation, as a recovery would."""
    await partition.freeze(generation)
    await partition.load(generation, [WalletState(WALLET, base, 0, 1)])
    await partition.activate(generation, 1)


def hold(amount: int, **given: Any) -> Hold:
    """A hold with an id of its own; `given` are its other fields."""
    made = Hold(os.urandom(16), NUMBER, WALLET, Nanos(amount), ticket=b"\xffticket")
    return made._replace(**given)


def total(there: Hold, amount: int) -> Hold:
    """The same hold with another amount."""
    return there._replace(amount=Nanos(amount))


def cap(name: str, limit: int, *starts_ms: int) -> Cap:
    """A cap, by default with one window that does not end."""
    return Cap(name, Nanos(limit), starts_ms or (0, FAR_MS))


def end_of(held: Hold, charge: int, kind: EndKind = EndKind.SETTLED, *, tokens: int = 0) -> End:
    """The end of a call."""
    return End(
        held.call_id,
        held.partition,
        held.wallet,
        kind,
        Nanos(charge),
        b"\xferecord",
        held.caps,
        tokens,
    )


async def images(partition: Partition, generation: int = 1) -> dict[str, WalletImage]:
    """Every wallet and window, each checked to add up."""
    image = await partition.scan(generation, count=1_000)
    for there in image.wallets:
        assert there.free + there.held + there.spent == there.base, there
    return {there.wallet: there for there in image.wallets}


async def held(partition: Partition, amount: int, **given: Any) -> Hold:
    """A hold that was admitted."""
    asked = hold(amount, **given)
    assert isinstance(await partition.hold(1, asked), Held)
    return asked


async def call(client: Redis, function: str, *arguments: bytes | str) -> list[Any]:
    """A function with arguments of any kind, in generation 1."""
    keys = key_names(NUMBER, 1)
    answers: list[Any] = await execute(client, "FCALL", function, len(keys), *keys, 1, *arguments)
    return answers

"""Calls and ends for the journal's tests, told apart by a number."""

from ledger.admission import Cap, End
from ledger.frames import OpenCall
from ledger.money import Nanos
from ledger.record import EndKind

CAPS = (Cap("cap-1", Nanos(5_000), (1_000, 2_000)),)


def call_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def call(number: int, *, partition: int = 7, ticket: bytes = b"ticket") -> OpenCall:
    return OpenCall(call_id(number), partition, "wallet-1", 900 + number, CAPS, ticket)


def end(number: int, *, partition: int = 7, record: bytes = b"record") -> End:
    return End(
        call_id(number),
        partition,
        "wallet-1",
        EndKind.SETTLED,
        Nanos(100 + number),
        record,
        CAPS,
        tokens=number,
    )

"""The journal alone: what it costs a call, and how fast a dead worker's journal is read.

The folder for temporary files decides which disk is measured.
"""

import os
import time
from pathlib import Path

from benchmarks.options import Options, Outcome
from ledger import record
from ledger.admission import Cap, End
from ledger.adoption import adopt
from ledger.frames import OpenCall
from ledger.journal import Journal
from ledger.money import Nanos
from ledger.record import EndKind, Record

_CAPS = (Cap("c" * 36, Nanos(10**9), (1_767_225_600_000, 1_769_904_000_000)),)


async def measure(options: Options, folder: Path) -> Outcome:
    """Write as many calls as a flush has records, put them on the disk, and adopt them."""
    calls = options.records
    journal = Journal.create(folder, worker="w0", bytes_max=calls * 2_000 + (64 << 20))
    packed, wallet = _record(), "w" * 36
    call_ids = [os.urandom(16) for _ in range(calls)]
    begun_s = time.perf_counter()
    for call_id in call_ids:
        journal.dispatched(OpenCall(call_id, 7, wallet, 123_456, _CAPS, packed))
        end = End(call_id, 7, wallet, EndKind.SETTLED, Nanos(1_234), packed, _CAPS, tokens=1_579)
        journal.finished(end)
    written_s = time.perf_counter()
    await journal.sync()
    synced_s = time.perf_counter()
    size = journal.disk_bytes
    journal.close()
    opened_s = time.perf_counter()
    (adopted,) = adopt(folder)
    read_s = time.perf_counter()
    found = sum(1 for _ in adopted.ends())
    replayed_s = time.perf_counter()
    for call_id in call_ids:
        adopted.appended([call_id], 7, generation=1, stream_id="1-0")
    adopted.proven(7, generation=1, stream_id="1-0")
    adopted.remove()
    return Outcome(
        details={
            "us_per_write": round((written_s - begun_s) / calls / 2 * 1e6, 2),
            "mib_on_disk": round(size / (1 << 20), 1),
            "sync_all_s": round(synced_s - written_s, 3),
            "adopt_records_per_s": round(calls / (read_s - opened_s)),
            "replay_records_per_s": round(calls / (replayed_s - read_s)),
        },
        objections=() if found == calls else (f"{calls - found} ends are missing",),
    )


def _record() -> bytes:
    return record.encode(
        Record(
            call_id=os.urandom(16),
            organization_id="o" * 36,
            project_id="p" * 36,
            key_id="k" * 36,
            member_id="",
            admitted_us=1_767_225_600_000_000,
            operation="chat/completions",
            provider="openai",
            model_requested="gpt-5",
            model_target="gpt-5",
            price_version="0123456789abcdef",
            held=123_456,
            usage={"input": 1_234, "output": 345},
            client="a" * 32,
        )
    )

"""What the journal costs a call, and how fast a dead worker's journal is read: not asserted.

    python -m benchmarks.journal [calls] [folder]

The folder decides what is measured: give one on the disk that the journal would have.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from ledger import record
from ledger.admission import Cap, End
from ledger.adoption import adopt
from ledger.frames import OpenCall
from ledger.journal import Journal
from ledger.money import Nanos
from ledger.record import EndKind, Record

CAPS = (Cap("c" * 36, Nanos(10**9), (1_767_225_600_000, 1_769_904_000_000)),)


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


def _measure(calls: int, directory: Path) -> dict[str, float]:
    journal = Journal.create(directory, worker="w0", bytes_max=calls * 2_000 + (64 << 20))
    packed, wallet = _record(), "w" * 36
    call_ids = [os.urandom(16) for _ in range(calls)]
    begun = time.perf_counter()
    for call_id in call_ids:
        journal.dispatched(OpenCall(call_id, 7, wallet, 123_456, CAPS, packed))
        end = End(call_id, 7, wallet, EndKind.SETTLED, Nanos(1_234), packed, CAPS, tokens=1_579)
        journal.finished(end)
    written = time.perf_counter()
    asyncio.run(journal.sync())
    synced = time.perf_counter()
    size = journal.disk_bytes
    journal.close()
    opened = time.perf_counter()
    (adopted,) = adopt(directory)
    read = time.perf_counter()
    found = sum(1 for _ in adopted.ends())
    replayed = time.perf_counter()
    assert found == calls, "an end is missing"
    for call_id in call_ids:
        adopted.appended(call_id, 7, generation=1, stream_id="1-0")
    adopted.proven(7, generation=1, stream_id="1-0")
    adopted.retire()
    return {
        "us_per_write": (written - begun) / calls / 2 * 1e6,
        "mib_on_disk": size / (1 << 20),
        "sync_all_s": synced - written,
        "adopt_records_per_s": calls / (read - opened),
        "replay_records_per_s": calls / (replayed - read),
    }


if __name__ == "__main__":
    CALLS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as FOLDER:  # noqa: PLR2004 - the second argument
        print(json.dumps(_measure(CALLS, Path(FOLDER)), indent=2))

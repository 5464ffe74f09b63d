"""The price sheet as workers get it."""

import asyncio
from pathlib import Path

from gateway.sheets import SheetFile, write_sheet
from ledger.price_compiler import compile_sheet
from ledger.pricing import PriceSheet

ONE = compile_sheet({}, [])
TWO = compile_sheet({"openai": "openai"}, [])


async def test_a_worker_waits_for_its_first_sheet(tmp_path: Path) -> None:
    file, stop = SheetFile(tmp_path), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(file.until_there(stop), name="wait")
        await asyncio.sleep(0)
        write_sheet(tmp_path, ONE)

    sheet = waiting.result()
    assert sheet is not None
    assert file.sheet is sheet
    assert sheet.version == PriceSheet.load(ONE).version


async def test_a_worker_that_is_stopped_waits_no_longer(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()

    assert await SheetFile(tmp_path).until_there(stop) is None


async def test_every_new_sheet_is_applied_once(tmp_path: Path) -> None:
    write_sheet(tmp_path, ONE)
    file, applied = SheetFile(tmp_path), asyncio.Queue[PriceSheet]()
    await file.until_there(asyncio.Event())
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(file.watch(applied.put_nowait), name="watch")
        write_sheet(tmp_path, TWO)
        async with asyncio.timeout(5):
            sheet = await applied.get()
        watching.cancel()

    assert sheet.version == PriceSheet.load(TWO).version
    assert applied.empty()

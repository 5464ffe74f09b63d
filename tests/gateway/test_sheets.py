"""The price sheet as workers get it, and with the configuration it belongs to."""

import asyncio
from pathlib import Path

from gateway.config import read
from gateway.settings import Config
from gateway.sheets import SheetFile, Together, fingerprint, write_sheet
from ledger.price_compiler import compile_sheet
from ledger.pricing import PriceSheet

ONE = compile_sheet({}, [])
TWO = compile_sheet({"openai": "openai"}, [])
PLAIN = read("", {})
PRICED = read(
    "providers: {own: {kind: openai, base_url: https://a.example/v1, prices: openai}}", {}
)


async def test_a_worker_waits_for_the_sheet_of_its_configuration(tmp_path: Path) -> None:
    file, stop = SheetFile(tmp_path), asyncio.Event()
    write_sheet(tmp_path, TWO, of=fingerprint(PRICED))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(file.until_there(PLAIN, stop), name="wait")
        while file.sheet is None:
            await asyncio.sleep(0)
        write_sheet(tmp_path, ONE, of=fingerprint(PLAIN))

    sheet = waiting.result()
    assert sheet is not None
    assert file.sheet is sheet
    assert sheet.version == PriceSheet.load(ONE).version


def test_a_sheet_is_good_for_its_prices_and_its_partitions() -> None:
    other = read("ledger: {partitions: 8}", {})
    assert len({fingerprint(config) for config in (PLAIN, PRICED, other)}) == 3
    assert fingerprint(read("logging: {level: debug}", {})) == fingerprint(PLAIN)


async def test_a_worker_that_is_stopped_waits_no_longer(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()

    assert await SheetFile(tmp_path).until_there(PLAIN, stop) is None


async def test_every_new_sheet_is_applied_once(tmp_path: Path) -> None:
    write_sheet(tmp_path, ONE, of=fingerprint(PLAIN))
    file, applied = SheetFile(tmp_path), asyncio.Queue[PriceSheet]()
    await file.until_there(PLAIN, asyncio.Event())
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(file.watch(applied.put_nowait), name="watch")
        write_sheet(tmp_path, TWO, of=fingerprint(PRICED))
        async with asyncio.timeout(5):
            sheet = await applied.get()
        watching.cancel()

    assert sheet.version == PriceSheet.load(TWO).version
    assert applied.empty()


async def test_configuration_and_prices_are_handed_on_together_whichever_comes_first(
    tmp_path: Path,
) -> None:
    file, taken = SheetFile(tmp_path), list[tuple[Config, str]]()
    together = Together(file, PLAIN, lambda config, sheet: taken.append((config, sheet.version)))

    async def news(packed: bytes, config: Config) -> None:
        write_sheet(tmp_path, packed, of=fingerprint(config))
        sheet = await file.until_there(config, asyncio.Event())
        assert sheet is not None
        together.price(sheet)

    one, two = PriceSheet.load(ONE).version, PriceSheet.load(TWO).version
    await news(ONE, PLAIN)
    together.configure(PRICED)
    assert taken == [(PLAIN, one)]
    await news(TWO, PRICED)
    assert taken == [(PLAIN, one), (PRICED, two)]
    await news(ONE, PLAIN)
    assert taken[2:] == []
    together.configure(PLAIN)
    assert taken[2:] == [(PLAIN, one)]

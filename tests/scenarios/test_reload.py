"""A changed configuration reaches every worker within two seconds, whole, or not at all."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from copy import deepcopy
from typing import Any

import pytest

from tests.scenarios.caller import CHAT, Answer, Caller, asks, caller
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books
from tests.scenarios.page import page
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
APPLIED_S_MAX = 2.0
CHARGE = "x-tollgate-charge-nanos"
NEXT_KEY = "sk-the-next-key-of-the-platform"
PROCESSES = 4  # the control process and three workers
LINES = 12  # connections, so that every worker has some
FREE = {"provider": "vendor", "model": "*", "free": True}


@pytest.fixture(scope="module")
def changing(
    tmp_path_factory: pytest.TempPathFactory, vendor_apart: Vendor
) -> Iterator[Deployment]:
    """A deployment whose configuration changes."""
    folder = tmp_path_factory.mktemp("changing", numbered=True)
    yield from Deployment.kept(folder, vendor_port=vendor_apart.port, workers=3)


@pytest.fixture
async def tollgate(changing: Deployment, vendor_apart: Vendor) -> AsyncIterator[Deployment]:
    """The same, with the configuration it began with."""
    await vendor_apart.forget()
    begun = deepcopy(changing.config)
    yield changing
    before = await applied(changing)
    changing.config = begun
    reload(changing)
    async with asyncio.timeout(20):
        while await applied(changing) < before + PROCESSES:
            await asyncio.sleep(0.05)


async def applied(tollgate: Deployment) -> float:
    """How many changes the processes have applied."""
    return (await page(tollgate)).sum("config_reloads_total", result="applied")


async def rejected(tollgate: Deployment) -> float:
    """And how many they have rejected."""
    return (await page(tollgate)).sum("config_reloads_total", result="rejected")


async def everywhere(
    lines: list[Caller], key: Key, body: dict[str, Any], is_so: Callable[[Answer], bool]
) -> float:
    """Call until every connection is answered so; when the last of them was."""
    async with asyncio.timeout(20):
        for line in lines:
            while not is_so(await line.post(CHAT, key.secret, body)):
                pass
    return time.monotonic()


def is_charged(nanos: str) -> Callable[[Answer], bool]:
    """Whether an answer cost this."""
    return lambda answer: answer.headers.get(CHARGE) == nanos


def is_error(code: str) -> Callable[[Answer], bool]:
    """Whether an answer is this error."""
    return lambda answer: answer.status != 200 and answer.error["code"] == code


async def until_seen(
    lines: list[Caller], key: Key, body: dict[str, Any], *, vendor: Vendor
) -> float:
    """Call until the vendor is sent the new key on every connection; when."""
    async with asyncio.timeout(20):
        for line in lines:
            while True:
                answer = await line.post(CHAT, key.secret, body)
                assert answer.status == 200
                (*_, entry) = await vendor.log()
                if entry.header("authorization") == f"Bearer {NEXT_KEY}":
                    break
    return time.monotonic()


def reload(tollgate: Deployment) -> float:
    """Write the configuration and say so; when."""
    tollgate.write_config()
    tollgate.tell(signal.SIGHUP)
    return time.monotonic()


async def test_prices_models_and_providers_change_on_every_worker(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key, before = await tollgate.new_key(), await applied(tollgate)
    config, took_s = tollgate.config, dict[str, float]()
    script = await vendor_apart.script("e4", input_tokens=100, output_tokens=10)
    body = asks(CHAT, script, max_tokens=20)
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(caller(tollgate)) for _ in range(LINES)]
        charges = {(await line.post(CHAT, key.secret, body)).headers[CHARGE] for line in lines}
        assert charges == {"450000"}

        config["prices"] = [FREE]
        began_s = reload(tollgate)
        took_s["price"] = await everywhere(lines, key, body, is_charged("0")) - began_s

        config["models"] = {"other": {"targets": [{"provider": "vendor", "model": script}]}}
        began_s = reload(tollgate)
        gone = await everywhere(lines, key, body, is_error("model_not_found"))
        took_s["model"] = gone - began_s
        other = {**body, "model": "other"}
        assert (await lines[0].post(CHAT, key.secret, other)).status == 200

        config["providers"]["vendor"]["api_key"] = NEXT_KEY
        began_s = reload(tollgate)
        took_s["key"] = await until_seen(lines, key, other, vendor=vendor_apart) - began_s
    assert max(took_s.values()) <= APPLIED_S_MAX
    assert await applied(tollgate) == before + 3 * PROCESSES
    await assert_books(tollgate, key, records=len(await vendor_apart.quiet()))
    shown = ", ".join(f"{what} {1000 * seconds:.0f} ms" for what, seconds in took_s.items())
    print(f"E4: after SIGHUP all of 3 workers have the new {shown}")


async def test_a_wrong_configuration_is_rejected_whole_and_the_old_one_stays(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key, before = await tollgate.new_key(), await rejected(tollgate)
    model = await vendor_apart.script("e4", input_tokens=100, output_tokens=10)
    body = asks(CHAT, model, max_tokens=20)
    good = tollgate.config["prices"]
    tollgate.config["prices"] = [FREE]  # the part of it that could be applied
    tollgate.config["limits"] = {"body_bytes_max": "a lot"}
    reload(tollgate)
    async with asyncio.timeout(10):
        while await rejected(tollgate) < before + PROCESSES:
            await asyncio.sleep(0.05)
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(caller(tollgate)) for _ in range(LINES)]
        charges = {(await line.post(CHAT, key.secret, body)).headers[CHARGE] for line in lines}
        assert charges == {"450000"}

        tollgate.config["prices"] = [*good, FREE]
        del tollgate.config["limits"]
        began_s = reload(tollgate)
        took_s = await everywhere(lines, key, body, is_charged("0")) - began_s
    assert await rejected(tollgate) == before + PROCESSES
    assert took_s <= APPLIED_S_MAX
    assert "configuration rejected" in tollgate.log_path.read_text()
    print(
        f"E4: a wrong file is rejected by 4 processes, its right prices, too; mended {took_s:.1f} s"
    )


async def test_a_gateway_pointed_at_itself_says_so_and_charges_nothing(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key()
    itself = {"kind": "custom", "base_url": tollgate.base_url, "allow_http": True}
    tollgate.config["providers"]["itself"] = {**itself, "api_key": key.secret}
    tollgate.config["models"] = {"m": {"targets": [{"provider": "itself", "model": "m"}]}}
    tollgate.config["prices"].append({**FREE, "provider": "itself"})
    reload(tollgate)
    body, answers = asks(CHAT, "m", max_tokens=20), list[Answer]()
    is_looping = is_error("loop_detected")
    async with asyncio.timeout(20), caller(tollgate) as line:
        while not answers or not is_looping(answers[-1]):
            answers.append(await line.post(CHAT, key.secret, body))
    assert answers[-1].status == 508
    assert "base_url" in answers[-1].error["message"]
    records = await assert_books(tollgate, key, records=len(answers))
    looped = [row for row in records if row["provider"] == "itself"]
    assert [(row["charge"], row["kind"], row["attempts"]) for row in looped] == [(0, "released", 1)]
    assert len(await vendor_apart.quiet()) == len(answers) - 1, "none before the change is missing"
    print("F10: a gateway pointed at itself: 508 loop_detected, 1 attempt, released at 0")

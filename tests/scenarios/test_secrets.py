"""No key, prompt or answer is found anywhere it could be read, whatever has failed before."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios import sinks
from tests.scenarios.caller import CHAT, RESPONSES, asks, caller, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.page import page
from tests.scenarios.vendors import many_names
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
PLATFORM = "sk-platform-0123456789abcdef"  # what the scripted vendor's providers are given
CANARIES = {
    "platform key": PLATFORM,
    "header of a provider": "canary-header-5f1c09",
    "pepper": "canary-pepper-77aa3b0c4d5e6f7081920a1b2c3d4e5f",
    "key with line breaks": "sk-canary-crlf-4c1d",
    "prompt": "canary-prompt-93ae",
    "answer": "canary-answer-b7d2",
    "user": "canary-user-0e44",
}
SPLIT_KEY = f"{CANARIES['key with line breaks']}\r\nX-Evil: 1"
MAY_SAY_IT = {("answer", "clients")}  # to the client, whose answer it is
# What is put there on purpose beside `sinks.CONTROLS`: the search must find it.
CONTROLS = {
    **sinks.CONTROLS,
    "control to a client": "clients",
    "control by a command": "check-config",
}


def changes(vendor_port: int) -> dict[str, Any]:
    """Providers that fail in every way, one of them over TLS with somebody who speaks none."""
    found = many_names(vendor_port)
    plain = found["providers"]["free"]
    hasty = {"connect_s": 1, "first_byte_s": 0.5, "idle_s": 0.5}
    more = {
        "tls": {**plain, "base_url": f"https://127.0.0.1:{vendor_port}/v1", "timeouts": hasty},
        "headed": {**plain, "headers": {"X-Canary": CANARIES["header of a provider"]}},
    }
    found["providers"].update(more)
    for name in more:
        found["models"][f"{name}/*"] = {"targets": [{"provider": name, "model": "*"}]}
        found["prices"].append({"provider": name, "model": "*", "free": True})
    return {**found, "auth": {"pepper": CANARIES["pepper"]}}


@pytest.fixture
async def tollgate(folder: Path, vendor_apart: Vendor) -> AsyncIterator[Deployment]:
    """A deployment of its own, in which these secrets are all there is."""
    await vendor_apart.forget()
    port = vendor_apart.port
    async with Deployment.started(folder, vendor_port=port, changes=changes(port)) as deployment:
        yield deployment


def refusals(key: Key) -> Iterator[bytes]:
    """Requests that are wrong in many ways, the key in each."""
    ask = asks(CHAT, "vendor/m", user=CANARIES["user"])
    ask["messages"][0]["content"] = CANARIES["prompt"]
    secret = key.secret
    yield request(CHAT, secret + "x", ask)
    yield request(CHAT, secret[:-1], ask)
    yield request(CHAT, "", ask, headers={"X-Api-Key": secret + "x"})
    yield request(f"{CHAT}?api_key={secret}", secret, ask)
    yield request(f"/v1/nothing/{secret}", secret, ask)
    yield request(CHAT, secret, ask, headers={"Content-Type": f"text/{secret}"})
    yield request(CHAT, secret, ask, headers={"Content-Encoding": secret})
    yield request(CHAT, secret, b'{"model": "' + CANARIES["prompt"].encode())
    yield request(CHAT, secret, {**ask, "model": "keyless/m"})
    yield request(CHAT, secret, {**ask, "model": "unpriced/m"})
    yield request(CHAT, secret, {**ask, "max_tokens": CANARIES["prompt"]})
    yield request(CHAT, secret, {**ask, "previous_response_id": 1, "messages": 5})
    yield request(RESPONSES, secret, {"model": "vendor/m", "input": "x", "conversation": secret})
    yield request("/v1/models/keyless/m", secret, b"", method="GET")
    yield request(CHAT, secret, ask, headers={"X-Bad": f"a\x00{secret}"})
    yield request(CHAT, secret, ask, method=f"P{secret[:8]}")
    # At the wall, where nobody knows yet what is a header and what is a key.
    prompt = CANARIES["prompt"]
    for planted in (secret, prompt):
        yield request(CHAT, secret, ask, headers={"Host": f"a/{planted}"})
        yield request(CHAT, secret, ask, headers={"Expect": planted})
        yield request(CHAT, secret, ask, headers={f"X {planted}": "b"})
        yield request(CHAT, secret, ask, headers={"Content-Length": planted})
        yield request(CHAT, secret, ask, headers={"Transfer-Encoding": planted})
        yield request(f"http://a/{planted}", secret, ask)
        yield planted.encode() + b"\r\n\r\n"
        yield f"GET /{planted} HTTP/9.9\r\n\r\n".encode()
        yield request(CHAT, secret, ask, headers={"X-Long": planted * 2_000})


async def failing_models(vendor: Vendor) -> list[str]:
    """Models whose vendor fails, some of them telling what they should not."""
    told = {"message": f"Incorrect API key provided: {PLATFORM}.", "code": "invalid_api_key"}
    scripts: dict[str, dict[str, Any]] = {
        "s401": {"status": 401, "error": told},
        "s400": {"status": 400, "error": told},
        "s404": {"status": 404, "error": told},
        "s429": {"status": 429, "error": told},
        "s500": {"status": 500, "error": told},
        "late": {"error_after": 1, "error": told},
        "first": {"error_after": -1, "error": told},
        "html": {"status": 502, "body": f"<h1>{PLATFORM}</h1>"},
        "reset": {"reset_after": 1},
        "cut": {"cut_after": 1},
        "garbage": {"garbage": True},
        "close": {"close_before_head": True},
        "stall": {"stall_after": 1},
        "slow": {"head_s": 30.0},
    }
    models = []
    for name, fields in scripts.items():
        script = await vendor.script(f"f3{name}", text=f" {CANARIES['answer']}", **fields)
        models.append(f"hasty/{script}")
    good = await vendor.script("f3good", text=f" {CANARIES['answer']}")
    targets = ("tls", "dead", "nowhere", "keyless", "headed", "cancel", "vendor")
    return models + [f"{target}/{good}" for target in targets]


async def provoke(tollgate: Deployment, key: Key, vendor: Vendor) -> list[bytes]:
    """Every byte that clients were given."""
    given = []
    for data in refusals(key):
        async with caller(tollgate) as line:
            await line.send(data)
            answer = await line.answer()
            given.append(repr(answer.headers).encode() + answer.body)
            assert 400 <= answer.status < 500, data
    for model in await failing_models(vendor):
        for is_stream in (False, True):
            ask = asks(CHAT, model, stream=is_stream, user=CANARIES["user"], max_tokens=5)
            ask["messages"][0]["content"] = CANARIES["prompt"]
            async with caller(tollgate) as line:
                answer = await line.post(CHAT, key.secret, ask)
            given.append(repr(answer.headers).encode() + answer.body)
    return given


async def crash(tollgate: Deployment, key: Key, vendor: Vendor) -> None:
    """kill -9 of the worker and of the control process in the middle of a call."""
    held = await vendor.script("f3held", text=f" {CANARIES['answer']}", hold_at=1)
    async with caller(tollgate) as line:
        ask = asks(CHAT, f"vendor/{held}", stream=True, user=CANARIES["user"])
        await line.send(request(CHAT, key.secret, ask))
        await vendor.held(1)
        for role in ("worker", "control"):
            (pid,) = tollgate.pids(role)
            await tollgate.kill_process(pid)
    while not (tollgate.pids("worker") and tollgate.pids("control")):
        await asyncio.sleep(0.01)
    await tollgate.until_ready()


async def reject(tollgate: Deployment) -> str:
    """A configuration with a key of two lines: what is said of it, and that it is not taken."""
    before = (await page(tollgate)).sum("config_reloads_total", result="rejected")
    good = tollgate.config_path.read_text()
    tollgate.config["providers"]["cancel"]["api_key"] = SPLIT_KEY
    tollgate.write_config()
    said = tollgate._command("check-config")
    tollgate.tell(signal.SIGHUP)
    async with asyncio.timeout(10):
        while (await page(tollgate)).sum("config_reloads_total", result="rejected") < before + 2:
            await asyncio.sleep(0.05)
    tollgate.config_path.write_text(good)
    assert said.returncode == 1
    return said.stdout + said.stderr


async def places(tollgate: Deployment, given: list[bytes], said: str) -> dict[str, bytes]:
    """All that is searched."""
    async with tollgate.redis() as redis:
        held = await sinks.redis_dump(redis)
    return {
        "clients": b"\n".join(given),
        "check-config": said.encode(),
        "metrics": (await page(tollgate)).text.encode(),
        "postgres": await sinks.postgres_dump(tollgate),
        "redis": held,
        "log": tollgate.log_path.read_bytes(),
        "files": sinks.files(tollgate.data),
    }


async def test_no_secret_and_no_content_is_left_anywhere(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key()
    given = await provoke(tollgate, key, vendor_apart)
    await crash(tollgate, key, vendor_apart)
    said = await reject(tollgate)
    async with caller(tollgate) as line:
        answer = await line.post(CHAT, key.secret, asks(CHAT, "vendor/m", max_tokens=5))
        assert answer.status == 200, "the old configuration is in use"
    await tollgate.records(key.organization_id, count=10)
    searched = await places(tollgate, given, said)
    secrets = {**CANARIES, "client key": key.secret}
    assert sinks.hits(secrets, searched, allowed=MAY_SAY_IT) == []
    assert b"call ended" in searched["log"]
    assert b"journal adopted" in searched["log"]
    assert b"tollgate_" in searched["metrics"]
    controls = {what: what for what in CONTROLS}
    assert sinks.hits(controls, searched) == []
    await sinks.plant(tollgate)
    said, given = f"{said} control by a command", [*given, b"a control to a client"]
    found = sinks.hits(controls, await places(tollgate, given, said))
    assert CONTROLS.items() <= {*found}, "the search does not find what is there"
    sizes = ", ".join(f"{name} {len(text) / 1024:.0f} KiB" for name, text in searched.items())
    print(
        f"F3: {len(CANARIES) + 1} canaries, {len(given) - 1} provoked failures, 2 crashes:"
        f" 0 hits in {sizes}; {len(CONTROLS)} controls planted and found"
    )

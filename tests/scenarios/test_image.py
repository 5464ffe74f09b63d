"""The image that the Dockerfile makes starts as an unprivileged user, serves, and ends in order."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.scenarios.caller import CHAT, Caller, asks
from tests.scenarios.fleet import HOST, status
from tests.scenarios.image import ROOT, Image, image
from tests.scenarios.scale import IS_CI
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that an unprivileged user can reach, made by root."""
    if os.geteuid() != 0:
        assert not IS_CI, "run CI as root: like an image's build, this makes others' files"
        pytest.skip("like an image's build, it makes others' files: run it as root")
    folder = Path(tempfile.mkdtemp(prefix="tollgate-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as held:
        held.bind((HOST, 0))
        return int(held.getsockname()[1])


def run(made: Image, environ: Mapping[str, str], *arguments: str) -> str:
    """A command in the image; what it says."""
    done = subprocess.run(
        arguments,
        cwd=made.folder,
        env=environ,
        user=made.user,
        group=made.user,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


async def test_the_image_is_built_serves_and_stops(open_folder: Path, vendor_apart: Vendor) -> None:
    await vendor_apart.forget()
    made, began_s = image(ROOT / "Dockerfile", open_folder / "root"), time.monotonic()
    script = open_folder / "build.sh"
    script.write_text("\n".join(made.script) + "\n")
    building = await asyncio.create_subprocess_exec(
        "/bin/sh", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told, _ = await building.communicate()
    assert building.returncode == 0, told.decode()
    took_s = time.monotonic() - began_s
    assert f"tollgate:x:{made.user}:" in (made.root / "etc/passwd").read_text()
    assert made.folder.stat().st_uid == made.user
    # PostgreSQL asks for a user with a name, which that one has in the image and not here.
    user, made.user = made.user, pwd.getpwnam("nobody").pw_uid
    os.chown(made.folder, made.user, -1)

    ports = {"data": free_port(), "control": free_port(), "metrics": free_port()}
    environ = {
        **made.environ,
        "PATH": made.environ["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin"),
        "TOLLGATE_LISTENERS__DATA__PORT": str(ports["data"]),
        "TOLLGATE_LISTENERS__CONTROL__PORT": str(ports["control"]),
        "TOLLGATE_LISTENERS__METRICS__PORT": str(ports["metrics"]),
        "TOLLGATE_SHUTDOWN__DRAIN_DELAY_S": "0",
        "TOLLGATE_PROVIDERS__LOCAL": f"{{kind: custom, base_url: '{vendor_apart.url}',"
        " allow_http: true}",
        "TOLLGATE_MODELS": "{'*': {targets: [{provider: local, model: '*'}]}}",
        "TOLLGATE_PRICES": "[{provider: local, model: '*', usd_per_million: {input: 3}}]",
    }
    program = str(made.root / "opt/tollgate/bin" / made.command[0])
    with (open_folder / "log").open("wb") as log:
        serving = subprocess.Popen(
            [program, *made.command[1:]],
            cwd=made.folder,
            env=environ,
            user=made.user,
            group=made.user,
            extra_groups=[],
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(60):
            while await status(ports["data"], "/readyz") != 200:
                assert serving.poll() is None, (open_folder / "log").read_text()
                await asyncio.sleep(0.05)
        check = " ".join(made.healthcheck).replace(":9090", f":{ports['metrics']}").split(" ", 2)
        run(made, environ, str(made.root / "opt/tollgate/bin" / check[0]), *check[1:])
        await assert_metered(made, environ, program, ports["data"])
    finally:
        serving.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(serving.wait, 30)
    assert code == 0, (open_folder / "log").read_text()
    size = sum(file.lstat().st_size for file in made.root.rglob("*") if "data" not in file.parts)
    print(
        f"image: the Dockerfile's steps in {took_s:.0f} s, {size / 1e6:.0f} MB;"
        f" `{' '.join(made.command)}` of USER {user} answered a call, exit code {code}"
    )


async def assert_metered(made: Image, environ: Mapping[str, str], program: str, port: int) -> None:
    """A customer is made with the image's own commands, calls, and is charged."""
    owner = run(made, environ, program, "org", "create", "first")
    (key,) = json.loads(run(made, environ, program, "key", "create", owner, "k", "--json"))
    run(made, environ, program, "credit", "grant", owner, "10", "--reason", "test")
    async with Caller.at(HOST, port) as line:
        answer = await line.post(CHAT, key["key"], asks(CHAT, "m", max_tokens=50))
    assert answer.status == 200, answer.body
    async with asyncio.timeout(10):
        while not json.loads(run(made, environ, program, "usage", owner, "--json")):
            await asyncio.sleep(0.1)
    assert run(made, environ, program, "verify") == "No difference."

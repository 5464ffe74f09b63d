"""The scripted vendor as a process: prints where it listens, as JSON, and serves."""

import argparse
import asyncio
import json
import sys

import msgspec
import uvloop

from tests.vendor.script import Script
from tests.vendor.server import Book, listen


async def _serve(arguments: argparse.Namespace) -> None:
    book = Book(log_max=arguments.log_max)
    for text in arguments.script:
        book.register(msgspec.json.decode(text, type=Script))
    server = await listen(
        book, host=arguments.host, port=arguments.port, reuse_port=arguments.reuse_port
    )
    host, port = server.sockets[0].getsockname()[:2]
    sys.stdout.write(json.dumps({"host": host, "port": port}) + "\n")
    sys.stdout.flush()
    if arguments.attached:
        await _end_of_input()
    else:
        await server.serve_forever()


async def _end_of_input() -> None:
    """Returns when the process that started us is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.vendor", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--reuse-port", action="store_true", help="share the port with others")
    parser.add_argument("--log-max", type=int, default=1_000_000, help="requests kept in the log")
    parser.add_argument("--script", action="append", default=[], help="a script as JSON")
    parser.add_argument("--attached", action="store_true", help="end when stdin does")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()

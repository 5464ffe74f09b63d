"""What no configuration can mend: an interpreter in which our promises do not hold.

Checked before anything is started; each line says what to do.
"""

import sys

import aiohttp
from aiohttp import http_parser

from gateway.document import Mistake

_AIOHTTP_MIN = (3, 14, 5)  # older ones can be made to read one request as two


def unsafe_runtime() -> list[Mistake]:
    """Why nothing may be served by this interpreter; empty if all is well."""
    found: list[str] = []
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        found.append(
            "aiohttp runs without its C parser, and the other one reads requests more laxly: unset"
            " AIOHTTP_NO_EXTENSIONS, or install aiohttp from a wheel for this platform"
        )
    version = tuple(int(part) for part in aiohttp.__version__.split(".")[:3] if part.isdigit())
    if version < _AIOHTTP_MIN:
        found.append(f"aiohttp {aiohttp.__version__} has known holes: install 3.14.5 or later")
    if sys.flags.optimize:
        found.append(
            "assertions are off, and they guard money: start Python without -O, and unset"
            " PYTHONOPTIMIZE"
        )
    return [Mistake(0, "", message) for message in found]

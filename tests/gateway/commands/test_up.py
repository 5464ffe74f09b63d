"""`tollgate up` as a command; what it does is proved by tests/gateway/test_up.py."""

from pathlib import Path

from tests.gateway.command_line import CommandLine


async def test_its_help_says_what_it_will_make_and_how_it_ends(tmp_path: Path) -> None:
    ran = await CommandLine(tmp_path, {}).done("up", "--help")
    said = " ".join(ran.out.split())
    for words in ("organization `demo`", "$5", "Ctrl-C", "--once", "ONCE", "extra `demo`"):
        assert words in said

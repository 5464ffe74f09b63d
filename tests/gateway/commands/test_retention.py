"""`tollgate retention`, as an operator types it."""

from datetime import timedelta
from pathlib import Path

from tests.gateway.command_line import operator
from tests.ledger.days import filled, kept, today_of
from tests.ledger.deployment import deployed


async def test_the_command_does_what_its_dry_run_says(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    terminal = operator(tmp_path, postgres_url, redis_url)
    async with deployed(postgres_url, redis_url) as deployment:
        acme = await filled(deployment)
        today = await today_of(deployment)
        said = await terminal.done("retention", "--dry-run")
        first = f"{today - timedelta(days=5)} would be dropped."
        assert said.out.splitlines()[0] == first
        assert said.out.endswith("\n0 logs of calls of other days would be deleted.\n")
        assert await kept(deployment, acme) == 6

        done = await terminal.done("retention")
        assert done.out == said.out.replace("would be ", "")
        assert await kept(deployment, acme) == 4

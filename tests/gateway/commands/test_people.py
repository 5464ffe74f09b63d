"""`tollgate operator`: the first person who can sign in."""

from pathlib import Path

import asyncpg

from tests.gateway.command_line import operator


async def test_an_operator_is_made_and_signs_in_once_by_the_link(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    ran = await operator(tmp_path, postgres_url, redis_url).run("operator", "Root@Example.com")
    assert ran.code == 0, ran.err
    link, secret = ran.out.strip().split("#")
    assert link == "http://localhost:8081/sign-in"
    assert "works once" in ran.err

    async with asyncpg.create_pool(postgres_url, min_size=0, max_size=1) as pool:
        row = await pool.fetchrow("SELECT email, is_operator, verified_at FROM person")
    assert row is not None
    assert (row["email"], row["is_operator"]) == ("root@example.com", True)
    assert row["verified_at"] is not None
    assert secret.startswith("tg_link_")


async def test_what_is_no_address_is_refused_in_one_line(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    ran = await operator(tmp_path, postgres_url, redis_url).run("operator", "nobody")
    assert ran.code == 1
    assert "no e-mail address" in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_who_lost_their_second_factor_is_let_in_by_a_command(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    terminal = operator(tmp_path, postgres_url, redis_url)
    await terminal.done("operator", "ada@example.com")
    none = await terminal.run("reset-factor", "ada@example.com", "--reason", "showed a passport")
    assert (none.code, "no one-time passwords" in none.err) == (1, True)

    async with asyncpg.create_pool(postgres_url, min_size=0, max_size=1) as pool:
        await pool.execute("UPDATE person SET otp_secret = 'sealed', otp_since = now()")
        await terminal.done("reset-factor", "ada@example.com", "--reason", "showed a passport")
        row = await pool.fetchrow("SELECT otp_secret, otp_since FROM person")
        mail = await pool.fetchrow("SELECT recipient, text FROM mail")
    assert row is not None
    assert mail is not None
    assert (row["otp_secret"], row["otp_since"]) == (None, None)
    assert mail["recipient"] == "ada@example.com"
    assert "showed a passport" in mail["text"]

"""`tollgate operator` and `reset-factor`: who runs the installation, and who is locked out."""

import secrets
from datetime import UTC, datetime

import click

from gateway.commands.stores import Stores, run
from gateway.management import operators
from gateway.management.operators import FactorReset, Helper
from providers.adapter import Secret

_ACTOR = "command line"  # as the audit log names who did it


@click.command()
@click.argument("email")
@click.pass_obj
def operator(config_path: str, *, email: str) -> None:
    """Make EMAIL an operator of this installation and print a link that signs in once.

    An operator grants credits, lists and suspends organizations, over the management API.
    """

    async def made(stores: Stores) -> tuple[Secret, str]:
        secret = await operators.make(
            stores.pool,
            email,
            digest=stores.key_digest(),
            random_bytes=secrets.token_bytes,
            now=datetime.now(UTC),  # noqa: TID251 - a command is its own root
        )
        return secret, stores.config.management.public_url.rstrip("/")

    secret, site = run(config_path, made)
    click.echo(f"{site}/sign-in#{secret.reveal()}")
    minutes = int(operators.LINK_LIVES.total_seconds() // 60)
    click.echo(
        f"Open it within {minutes} minutes in the browser that you will use: it works once. Choose"
        f" a password afterwards by {site}/api/v1/docs#sessions.send_reset.",
        err=True,
    )


@click.command("reset-factor")
@click.argument("email")
@click.option("--reason", required=True, help="How you know that it is them; they are told.")
@click.pass_obj
def reset_factor(config_path: str, *, email: str, reason: str) -> None:
    """Take away the one-time passwords of EMAIL, who lost them.

    Their recovery codes go with them, and every session ends; the password stays wanted. They are
    told by mail, and their audit log has it.
    """

    async def done(stores: Stores) -> None:
        site = stores.config.management.public_url.rstrip("/")
        async with stores.pool.acquire() as connection, connection.transaction():
            await operators.reset_factor(
                connection,
                FactorReset(email=email, reason=reason),
                Helper(_ACTOR, None),
                site=site,
                now=datetime.now(UTC),  # noqa: TID251 - a command is its own root
            )

    run(config_path, done)
    click.echo(f"{email} signs in without one-time passwords now, and was told so by mail.")

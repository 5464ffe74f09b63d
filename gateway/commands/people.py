"""`tollgate operator`: who runs the installation."""

import secrets
from datetime import UTC, datetime

import click

from gateway.commands.stores import Stores, run
from gateway.management import operators
from providers.adapter import Secret


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

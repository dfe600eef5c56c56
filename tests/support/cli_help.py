"""docs/CLI.md, written from the help of every command. `python -m tests.support.cli_help` writes it."""

from collections.abc import Iterator
from typing import Final

import typer
from typer.core import TyperGroup

from serve_app.ops.cli import app
from tests.support.paths import ROOT

DOCUMENT: Final = ROOT / "docs" / "CLI.md"

_WIDTH: Final = 100
_INTRODUCTION: Final = """\
# The command line

`sophia` reads the same configuration as the service and connects to the same database, so it must run where both can be reached.

| exit status | meaning |
|---|---|
| 0 | The command succeeded. |
| 1 | Sophia reports an error, or a check of `doctor` failed. The error is one line on stderr with its [code](FAILURES.md). |
| 2 | The command line is wrong. One line on stderr names the problem and what the command accepts. |

`python -m tests.support.cli_help` writes this file from the commands' own help.
"""


def document() -> str:
    """The text of docs/CLI.md."""
    root = typer.Context(typer.main.get_command(app), info_name="sophia", terminal_width=_WIDTH)
    sections = [f"## {title}\n\n```text\n{text}\n```\n" for title, text in _helps(root)]
    return "\n".join([_INTRODUCTION, *sections])


def _helps(context: typer.Context) -> Iterator[tuple[str, str]]:
    """The command line and the help of a command, followed by those of its subcommands."""
    command = context.command
    yield context.command_path, command.get_help(context)
    if isinstance(command, TyperGroup):
        for name, one in command.commands.items():
            yield from _helps(typer.Context(one, info_name=name, parent=context, terminal_width=_WIDTH))


if __name__ == "__main__":
    DOCUMENT.write_text(document())

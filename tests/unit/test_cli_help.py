"""What `sophia --help` prints, and what it costs to print it."""

import subprocess
import sys

from serve_app.jobs import Status
from serve_app.ops.cli import main
from tests.support import cli_help


def test_the_document_is_the_help_of_every_command() -> None:
    """docs/CLI.md is what `python -m tests.support.cli_help` writes."""
    assert cli_help.DOCUMENT.read_text() == cli_help.document()


def test_the_help_of_jobs_names_every_state() -> None:
    """The help is written without importing jobs.py, so that a new state must be added to it."""
    document = " ".join(cli_help.document().split())
    *first, last = [status.value for status in Status]
    assert f"Only jobs in this state: {', '.join(first)} or {last}." in document


def test_help_imports_nothing_heavy() -> None:
    """`sophia --help` loads neither the database's nor the model's libraries."""
    code = (
        "import sys; from serve_app.ops.cli import main; status = main(['--help']); "
        "print(sorted({'sqlalchemy', 'pydantic_settings', 'httpx', 'ray', 'torch'} & set(sys.modules))); sys.exit(status)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_version_is_printed_without_a_command() -> None:
    """`sophia --version` succeeds wherever it runs."""
    assert main(["--version"]) == 0

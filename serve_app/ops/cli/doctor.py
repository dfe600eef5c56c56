"""`sophia doctor`: check everything that a deploy needs."""

from pathlib import Path
from typing import Annotated

import typer

from serve_app.ops.cli.context import configuration


def check(
    context: typer.Context,
    load: Annotated[
        bool, typer.Option("--load", help="Also load every model and generate a test song with it.")
    ] = False,
) -> int:
    """Check everything that a deploy needs.

    The exit status is 1 if any check fails.
    """
    from serve_app.ops import doctor

    return doctor.run(configuration(context), _http_host(context.obj), load)


def _http_host(config: Path | None) -> str | None:
    """The address that Serve listens on by this Serve config. None without a config. Raises ConfigurationError."""
    if config is None:
        return None
    import yaml

    from serve_app.ops.launch.address import address_of

    return address_of(yaml.safe_load(config.read_text())).host

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
    """The address that Serve listens on by this Serve config; Serve's own default is loopback. None without a config."""
    if config is None:
        return None
    import yaml

    options = yaml.safe_load(config.read_text()).get("http_options") or {}
    return str(options.get("host", "127.0.0.1"))

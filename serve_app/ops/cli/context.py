"""What the commands share: the configuration, the database, the check of a model's name, and how times are shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.errors import NotFound

if TYPE_CHECKING:
    from serve_app.config import AppArgs, ModelArgs
    from serve_app.store import Store

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name in the configuration.")]


def configuration(context: typer.Context) -> "AppArgs":
    """The configuration that `--config` and the environment give. Raises ConfigurationError."""
    from serve_app.settings import load_args

    return load_args(context.obj)


@contextmanager
def open_store(args: "AppArgs") -> Iterator["Store"]:
    """The configured database with its schema up to date; closed at the end. Raises StoreUnavailable."""
    from serve_app.store import Store

    store = Store(args.resolved_database_url, args.database)
    try:
        store.migrate()
        yield store
    finally:
        store.close()


def require_model(name: str, args: "AppArgs") -> None:
    """Raise NotFound unless the configuration has a model of this name."""
    if name not in args.models:
        raise NotFound(f"The configuration has no model {name!r}. Its models are: {', '.join(args.models)}.")


def settled_model(name: str, args: "AppArgs") -> "ModelArgs":
    """The model with `source: auto` replaced by what the cluster's hardware calls for. Raises NotFound."""
    from serve_app.weights import auto

    require_model(name, args)
    if args.models[name].source != "auto":
        return args.models[name]
    model, why = auto.settled(name, args.models[name], auto.hardware_from_outside)
    print(why, file=sys.stderr)
    return model


def show_progress(_phase: str, _fraction: float | None, message: str) -> None:
    """Print the progress of fetching or checking files."""
    print(message, file=sys.stderr)


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser for options: a whole number within the two bounds. It raises BadParameter for any other word."""

    def parse(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise typer.BadParameter(f"must be a whole number from {least} to {most}, got {word!r}")
        return number

    return parse


def utc(seconds: float) -> str:
    """A time in seconds since the epoch as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

"""`sophia adapters`: add, list and remove adapters while the service runs."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.errors import Conflict, HubUnreachable, InvalidRequest, NotFound
from serve_app.ops.cli.context import ModelName, configuration, open_store, require_model, settled_model, show_progress
from serve_app.validation_texts import validation_text

if TYPE_CHECKING:
    from serve_app.config import AdapterArgs, AppArgs

app = typer.Typer(help="Add, list and remove adapters (LoRA, LoKr, DoRA) while the service runs.")

_AdapterName = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name, which requests use.")]


@app.command()
def add(  # noqa: PLR0917 - typer needs one parameter for each argument and option
    context: typer.Context,
    model: ModelName,
    name: _AdapterName,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A repository id, an object store, or a folder or .safetensors file at the same path on every worker's node.",
        ),
    ],
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The file or folder in the source, if it has several adapters.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="The repository's commit, tag or branch.")
    ] = None,
    scale: Annotated[
        float, typer.Option(metavar="NUMBER", help="How strongly it counts in requests that name no scale.")
    ] = 1.0,
) -> None:
    """Check an adapter and add it to a model.

    Requests may name it at once, and workers fetch it when the first one does: nothing restarts. An adapter of this name that was
    added before is replaced.
    """
    from serve_app import weights

    args = configuration(context)
    require_model(model, args)
    if source.startswith("."):
        source = str(Path(source).resolve())
    settings = _settings(name, {"source": source, "file": file, "revision": revision, "scale": scale})
    if name in args.models[model].adapters:
        raise Conflict(
            f"The configuration has an adapter {name!r} of {model}. Change it there, or choose another name."
        )
    found = weights.adapter_file(model, name, settings, args.weights_dir, show_progress)
    _check(model, args, found)
    with open_store(args) as store:
        store.adapters.add(model, name, settings)
    print(f"Added the adapter {name} to {model}.")


@app.command("list")
def list_adapters(context: typer.Context) -> None:
    """List the adapters: model, name, scale, source, and whether it was added or is in the configuration."""
    args = configuration(context)
    with open_store(args) as store:
        for model, settings in args.models.items():
            for name, adapter in store.adapters.known(model, settings.adapters).items():
                place = "/".join(filter(None, (adapter.source, adapter.file)))
                origin = "in the configuration" if name in settings.adapters else "added"
                print(f"{model}\t{name}\t{adapter.scale:g}\t{place}\t{origin}")


@app.command()
def remove(context: typer.Context, model: ModelName, name: _AdapterName) -> None:
    """Remove an adapter that was added.

    Songs that are being generated keep it. Queued jobs that name it will fail.
    """
    args = configuration(context)
    require_model(model, args)
    if name in args.models[model].adapters:
        raise Conflict(f"The adapter {name!r} of {model} is in the configuration. Remove it there.")
    with open_store(args) as store:
        if not store.adapters.remove(model, name):
            known = ", ".join(store.adapters.known(model, args.models[model].adapters))
            raise NotFound(f"{model} has no adapter {name!r}. " + (f"It has {known}." if known else "It has none."))
    print(f"Removed the adapter {name} from {model}.")


def _settings(name: str, given: dict[str, object]) -> "AdapterArgs":
    """The adapter's settings. Raises InvalidRequest, which names the option and what is allowed."""
    from pydantic import ValidationError

    from serve_app.config import AdapterArgs
    from serve_app.config.models import ADAPTER_NAME

    if not re.fullmatch(ADAPTER_NAME, name):
        raise InvalidRequest(
            f"{name!r} is not a valid name: use 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    try:
        return AdapterArgs.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        field = str(fault["loc"][0])
        raise InvalidRequest(f"{field}: {validation_text(fault)}, got {given[field]!r}") from error


def _check(model: str, args: "AppArgs", file: Path) -> None:
    """Compare the adapter with the model's checkpoint, if this machine has it. Raises BadAdapter."""
    from serve_app import weights
    from serve_app.config.sources import SIMULATED
    from serve_app.engine.ace_step.adapters.check import count_layers

    settings = settled_model(model, args)
    if settings.source == SIMULATED:
        return
    try:
        checkpoint = weights.resolve(model, settings, args.weights_dir, show_progress, online=False)
    except HubUnreachable:
        print(
            f"The checkpoint of {model} is not on this machine, so the adapter was not compared with it.",
            file=sys.stderr,
        )
        return
    print(f"{file} fits {model}: it changes {count_layers(file, checkpoint)} layers.", file=sys.stderr)

"""`sophia weights`: fetch and verify checkpoints."""

import sys
from typing import TYPE_CHECKING

import typer

from serve_app.ops.cli.context import ModelName, configuration, require_model

if TYPE_CHECKING:
    from serve_app.config import AppArgs, ModelArgs

app = typer.Typer(help="Fetch and verify checkpoints.")


@app.command()
def pull(context: typer.Context, model: ModelName) -> None:
    """Fetch a model's checkpoint into this node's cache.

    All workers of the node use the same cache.
    """
    from serve_app import weights

    args = configuration(context)
    settled = _settled_model(model, args)
    folder = weights.resolve(model, settled, args.weights_dir, _show_progress)
    facts = weights.verify(folder, settled)
    print(f"{folder}: {facts.variant}, {facts.bytes / 1e9:.2f} GB")


@app.command()
def verify(context: typer.Context, model: ModelName) -> None:
    """Compare a cached checkpoint's files with their hashes.

    The command reads every file and compares its hash with the manifest of the checkpoint.
    """
    from serve_app import weights

    args = configuration(context)
    folder = weights.resolve(model, _settled_model(model, args), args.weights_dir, _show_progress, online=False)
    checked = weights.check_hashes(folder, _show_progress)
    print(f"{folder}: {checked / 1e9:.2f} GB match the manifest")


def _settled_model(name: str, args: "AppArgs") -> "ModelArgs":
    """The model with `source: auto` replaced by what the cluster's hardware calls for. Raises NotFound."""
    from serve_app.weights import auto

    require_model(name, args)
    if args.models[name].source != "auto":
        return args.models[name]
    model, why = auto.settled(name, args.models[name], auto.hardware_from_outside)
    print(why, file=sys.stderr)
    return model


def _show_progress(_phase: str, _fraction: float | None, message: str) -> None:
    print(message, file=sys.stderr)

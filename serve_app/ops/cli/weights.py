"""`sophia weights`: fetch, convert and verify checkpoints."""

from typing import Any

import typer

from serve_app.ops.cli.context import ModelName, configuration, settled_model, show_progress

app = typer.Typer(help="Fetch, convert and verify checkpoints.")


@app.command()
def show(context: typer.Context, model: ModelName) -> None:
    """Show where a model's checkpoint comes from, and what is converted.

    The command reads lists of files and the headers of weights, and fetches no weights.
    """
    from serve_app import weights

    args = configuration(context)
    settled = settled_model(model, args)
    missing = weights.missing_bytes(model, settled, args.weights_dir)
    record = weights.conversion(model, settled, args.weights_dir)
    print(f"source: {settled.source}")
    print(f"cache: {args.weights_dir}, {missing / 1e9:.2f} GB to fetch")
    print(f"layout: {record['layout'] if record else 'used as it is'}")
    if record:
        _print_record(record)


@app.command()
def pull(context: typer.Context, model: ModelName) -> None:
    """Fetch a model's checkpoint, and the adapters of its configuration, into this node's cache.

    All workers of the node use the same cache. A checkpoint in another layout than diffusers' is converted.
    """
    from serve_app import weights

    args = configuration(context)
    settled = settled_model(model, args)
    folder = weights.resolve(model, settled, args.weights_dir, show_progress)
    facts = weights.verify(folder, settled)
    print(f"{folder}: {facts.variant}, {facts.bytes / 1e9:.2f} GB")
    for name, adapter in settled.adapters.items():
        print(f"{weights.adapter_file(model, name, adapter, args.weights_dir, show_progress)}: the adapter {name}")


@app.command()
def verify(context: typer.Context, model: ModelName) -> None:
    """Compare a cached checkpoint's files with their hashes.

    The command reads every file and compares its hash with the manifest of the checkpoint.
    """
    from serve_app import weights

    args = configuration(context)
    folder = weights.resolve(model, settled_model(model, args), args.weights_dir, show_progress, online=False)
    checked = weights.check_hashes(folder, show_progress)
    print(f"{folder}: {checked / 1e9:.2f} GB match the manifest")


def _print_record(record: dict[str, Any]) -> None:
    print(f"diffusion model: {record['diffusion_model']}")
    for component, origin in record["components"].items():
        print(f"  {component}: {origin}")
    unused = record["unused_tensors"]
    print(f"tensors that are not used: {len(unused)}{f', from {unused[0]} to {unused[-1]}' if unused else ''}")

"""Checks an adapter file against a checkpoint that is not loaded."""

from pathlib import Path

from safetensors import safe_open

from serve_app.engine.ace_step.adapters.reading import parse, read


def count_layers(file: Path, checkpoint: Path) -> int:
    """Returns how many layers of the transformer in the folder `checkpoint` the adapter `file` changes.

    Raises:
        BadAdapter: the file cannot be read, or does not fit the transformer.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for weights in (checkpoint / "transformer").glob("*.safetensors"):
        with safe_open(weights, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a file is no dict
                shapes[name.removesuffix(".weight")] = tuple(tensors.get_slice(name).get_shape())
    return len(parse(read(file), {name: shape for name, shape in shapes.items() if _is_adaptable(name, shape)}))


def _is_adaptable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether `Adapters` could change this layer: linear layers and the first convolution, but no tables of numbers."""
    return name == "proj_in_conv" or (len(shape) == 2 and not name.endswith("bias"))

"""One component of a checkpoint: read from a source, checked, and laid out as diffusers' files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from serve_app import errors
from serve_app.weights.cache import Remote
from serve_app.weights.convert.content import Content, Stored
from serve_app.weights.convert.expected import leftovers
from serve_app.weights.convert.headers import Tensors, json_content, read_tensors, weight_files
from serve_app.weights.convert.parts import WeightSet, check_shards
from serve_app.weights.layout import AGAIN

_MAX_CONFIG_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Found:
    """The tensors of a component under diffusers' names, as a source has them."""

    title: str
    """Names the files and their source in messages."""
    tensors: Tensors
    config: Mapping[str, Any]
    """The source's configuration, empty if it has none."""
    whole: Content | None = None
    """The source's file, if it holds just these tensors under these names."""


@dataclass(frozen=True)
class Component:
    """A component of the converted checkpoint."""

    files: Mapping[str, Content]
    """By their paths in the converted checkpoint."""
    origin: str
    """The files and the source that it comes from."""
    unused: tuple[str, ...] = ()
    """Tensors of the source that the component's module does not have."""


def read_set(source: Remote, weights: WeightSet, rename: Callable[[Tensors], Tensors]) -> Found:
    """Reads the headers of a weight set. `rename` maps the names and shapes to those of diffusers.

    Raises:
        MissingFile, CorruptFile: see `all_tensors`. LoadError: the source cannot be read.
    """
    tensors = all_tensors(source, weights)
    renamed = rename(tensors)
    return Found(
        title=title_of(source, weights),
        tensors=renamed,
        config=read_config(source, weights.config),
        whole=whole_file(source, weights) if _shapes(renamed) == _shapes(tensors) else None,
    )


def all_tensors(source: Remote, weights: WeightSet) -> Tensors:
    """Returns the tensors of all files of a weight set.

    Raises:
        MissingFile: a shard is missing.
        CorruptFile: a file is not what its name says, or two have a tensor of the same name.
    """
    check_shards(weights)
    tensors: Tensors = {}
    for file in weights.files:
        more = read_tensors(source, file)
        twice = sorted(tensors.keys() & more.keys())
        if twice:
            raise errors.CorruptFile(f"{file} of {source.title} repeats the tensor {twice[0]} of another file: {AGAIN}")
        tensors.update(more)
    return tensors


def read_config(source: Remote, file: str | None) -> dict[str, Any]:
    """Returns the JSON object in a file, an empty one if `file` is None. Raises CorruptFile if the file holds anything else."""
    if file is None:
        return {}
    size = source.files[file].size
    if size > _MAX_CONFIG_BYTES:
        raise errors.CorruptFile(f"{file} of {source.title} has {size} bytes, too many for a configuration: {AGAIN}")
    try:
        content = json.loads(b"".join(copied(source, file).read(0)))
    except ValueError as error:
        raise errors.CorruptFile(f"{file} of {source.title} is not JSON ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise errors.CorruptFile(f"{file} of {source.title} is not a JSON object: {AGAIN}")
    return content


def copied(source: Remote, file: str) -> Content:
    """Returns the content of a file of the source, as it is."""
    entry = source.files[file]
    return Content([Stored(source, file, 0, entry.size)], entry.sha256)


def whole_file(source: Remote, weights: WeightSet) -> Content | None:
    """Returns the content of the only file of a weight set, None if it has several."""
    return copied(source, weights.files[0]) if len(weights.files) == 1 else None


def title_of(source: Remote, weights: WeightSet) -> str:
    """Returns the name of a weight set for messages: `vae/diffusion_pytorch_model.safetensors of owner/repository`."""
    first = weights.files[0]
    more = len(weights.files) - 1
    return f"{first}{f' (and {more} more shards)' if more else ''} of {source.title}"


def laid_out(name: str, found: Found, config: Mapping[str, Any]) -> Component:
    """Returns the component `name`, with a configuration for diffusers.

    Raises:
        WrongTensors: a tensor is missing, has another shape or is quantised.
    """
    unused = leftovers(name, found.title, config, found.tensors)
    kept = {tensor: value for tensor, value in found.tensors.items() if tensor not in unused}
    stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
    weights = {f"{stem}.safetensors": found.whole} if found.whole and not unused else weight_files(stem, kept)
    files = {f"{name}/{file}": content for file, content in weights.items()}
    return Component({f"{name}/config.json": json_content(config), **files}, found.title, tuple(sorted(unused)))


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}

"""Reads the headers of safetensors files of a source, without their tensors, and lays out new files.

The format: 8 bytes with the header's length (little endian), the header as JSON, then the tensors' bytes. The header maps each
tensor's name to its dtype, shape and place, counted from the header's end.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from serve_app import errors
from serve_app.weights.cache import Remote
from serve_app.weights.convert.content import Content, Piece, Stored, size_of
from serve_app.weights.layout import AGAIN

Shape = tuple[int, ...]
Tensors = dict[str, "Tensor"]

_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000
"""safetensors' own limit."""

ITEM_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""The dtypes of unquantised weights, and the bytes of one number."""

_SHARD_BYTES: Final = 5_000_000_000
"""The size at which a new weight file begins. diffusers loads one file at a time, so this bounds its memory."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a weight file."""

    dtype: str
    """As safetensors writes it: `BF16`."""
    shape: Shape
    data: Piece


def read_tensors(source: Remote, file: str) -> Tensors:
    """Returns the tensors of a safetensors file by name.

    Raises:
        CorruptFile: the file is not safetensors, is truncated, or its header contradicts itself.
        Interrupted, LoadError: the source's `read` raised it.
    """
    whole = source.files[file].size
    try:
        length = int.from_bytes(Stored(source, file, 0, _LENGTH_BYTES).content(), "little")
        begin = _LENGTH_BYTES + length
        if length > _MAX_HEADER_BYTES or begin > whole:
            raise ValueError(f"its header claims {length} of the file's {whole} bytes")
        header = json.loads(Stored(source, file, _LENGTH_BYTES, length).content())
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        data = Stored(source, file, begin, whole - begin)
        return {name: _tensor(data, name, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise errors.CorruptFile(f"{file} of {source.title} is not a safetensors file ({error}): {AGAIN}") from error


def _tensor(data: Stored, name: str, entry: Mapping[str, Any]) -> Tensor:
    """Returns the tensor that the header's `entry` describes. `data` is what follows the header."""
    start, end = entry["data_offsets"]
    dtype = str(entry["dtype"])
    shape = tuple(int(length) for length in entry["shape"])
    if not 0 <= start <= end <= data.size:
        raise ValueError(f"the bytes {start} to {end} of {name} are not in it")
    if dtype in ITEM_BYTES and end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name} has {end - start} bytes, which is wrong for {dtype} of shape {list(shape)}")
    return Tensor(dtype, shape, Stored(data.source, data.file, data.start + start, end - start))


def weight_files(stem: str, tensors: Tensors) -> dict[str, Content]:
    """Returns the files that hold `tensors`, by name: STEM.safetensors, or shards of about 5 GB with their index."""
    groups = _groups(tensors)
    if len(groups) == 1:
        return {f"{stem}.safetensors": _weight_file(groups[0])}
    names = [f"{stem}-{at:05}-of-{len(groups):05}.safetensors" for at in range(1, len(groups) + 1)]
    places = {name: file for file, group in zip(names, groups, strict=True) for name in group}
    total = sum(size_of(tensor.data) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    files = {file: _weight_file(group) for file, group in zip(names, groups, strict=True)}
    return {**files, f"{stem}.safetensors.index.json": json_content(index)}


def json_content(value: object) -> Content:
    """Returns the content of a JSON file."""
    return Content([json.dumps(value, indent=2).encode() + b"\n"])


def _groups(tensors: Tensors) -> list[Tensors]:
    groups: list[Tensors] = [{}]
    filled = 0
    for name, tensor in sorted(tensors.items(), key=_place):
        size = size_of(tensor.data)
        if groups[-1] and filled + size > _SHARD_BYTES:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += size
    return groups


def _place(item: tuple[str, Tensor]) -> tuple[int, str, int, str]:
    """The order in a new file: wide dtypes first, so that all are aligned, then as in the source, to read neighbours together."""
    name, tensor = item
    width = -ITEM_BYTES[tensor.dtype]
    if isinstance(tensor.data, Stored):
        return width, tensor.data.file, tensor.data.start, name
    return width, "", 0, name


def _weight_file(tensors: Tensors) -> Content:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        end = at + size_of(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    padded = text + b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes, as safetensors wants
    length = len(padded).to_bytes(_LENGTH_BYTES, "little")
    return Content([length + padded, *(tensor.data for tensor in tensors.values())])

"""Reads adapter files: PEFT folders, ComfyUI's and diffusers' single files, and LyCORIS's LoRA, LoKr and DoRA.

Only safetensors files are read, because other formats can run code. This file imports torch: import it only after
`loading.import_packages`.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from serve_app.engine.ace_step.adapters.layer_names import LayerNames
from serve_app.engine.ace_step.adapters.scaling import Scaling
from serve_app.engine.ace_step.adapters.updates import Change, Kronecker, LowRank, Patches
from serve_app.errors import BadAdapter
from serve_app.plurals import counted
from serve_app.weights import ADAPTER_CONFIG, PEFT_WEIGHTS

_PARTS: Final = {
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_down.weight": "down",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora_up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    "lokr_w1": "outer",
    "lokr_w1_a": "outer_a",
    "lokr_w1_b": "outer_b",
    "lokr_w2": "inner",
    "lokr_w2_a": "inner_a",
    "lokr_w2_b": "inner_b",
}
"""What a tensor is, by the end of its name."""
_KINDS: Final = "LoRA, LoKr and DoRA"


@dataclass(frozen=True)
class AdapterFile:
    """The content of an adapter file."""

    path: Path
    tensors: Mapping[str, Tensor]
    scaling: Scaling


@dataclass(frozen=True)
class Parsed:
    """What an adapter file has for one layer. `magnitude` is DoRA's, see `Rescaling.of`."""

    change: Change
    magnitude: Tensor | None


def read(path: Path) -> AdapterFile:
    """Reads the file of an adapter.

    Raises:
        BadAdapter: the file is truncated, or its settings are missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no dict
    except SafetensorError as error:
        raise BadAdapter(f"{path} is truncated or not a safetensors file ({error}). Copy it again.") from error
    return AdapterFile(path, tensors, _scaling(path, metadata))


def parse(file: AdapterFile, layers: Mapping[str, tuple[int, ...]]) -> dict[str, Parsed]:
    """Returns what `file` has for each layer, by the layer's path in diffusers' transformer.

    `layers` are the shapes of the weights that adapters may change, by path: (outputs, inputs) of linear layers, (outputs, inputs,
    patch size) of the convolution that makes patches.

    Raises:
        BadAdapter: a tensor belongs to no layer, is of an unknown kind, has no counterpart or the wrong shape, or is not finite.
    """
    names = LayerNames(layers)
    found: dict[str, Parsed] = {}
    misfits: list[str] = []
    for name, parts in _parts_by_layer(file).items():
        layer = names.find(name)
        if layer is None:
            misfits.append(f"{name}, which this model does not have")
            continue
        parsed = _parsed(file, name, parts, layers[layer])
        if parsed.change.shape == layers[layer]:
            found[layer] = parsed
        else:
            misfits.append(
                f"{name}, whose weight has the shape {_shown(layers[layer])} here and {_shown(parsed.change.shape)} there"
            )
    if misfits:
        raise BadAdapter(
            f"{file.path} was made for another base model: {counted(len(misfits), 'layer')} of {len(misfits) + len(found)} "
            f"{'does' if len(misfits) == 1 else 'do'} not fit, the first is {misfits[0]}."
        )
    if not found:
        raise BadAdapter(f"{file.path} has no tensors.")
    return found


def _parts_by_layer(file: AdapterFile) -> dict[str, dict[str, Tensor]]:
    """The tensors by the layer's name in the file, then by what they are. Raises BadAdapter."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in file.tensors.items():
        ending = next((ending for ending in _PARTS if key.endswith(f".{ending}")), None)
        if ending is None:
            raise BadAdapter(f"{file.path} has the tensor {key}, which Sophia cannot apply. It reads {_KINDS}.")
        if not tensor.is_floating_point():
            raise BadAdapter(f"{file.path}: the tensor {key} has the type {tensor.dtype}, which is no kind of weight.")
        if not torch.isfinite(tensor.float()).all():
            raise BadAdapter(f"{file.path}: the tensor {key} has NaN or infinite values.")
        found[key.removesuffix(f".{ending}")][_PARTS[ending]] = tensor
    return found


def _parsed(file: AdapterFile, name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Parsed:
    """What the tensors of one layer, whose weight has this shape, are together. Raises BadAdapter."""
    try:
        change = _change(file.scaling, name, parts, shape)
        magnitude = parts.get("magnitude")
        if magnitude is not None and magnitude.numel() not in change.shape[:2]:
            raise ValueError("the magnitude is neither of the rows nor of the columns")
    except (KeyError, ValueError, RuntimeError, IndexError, ArithmeticError) as error:
        found = ", ".join(f"{part} {_shown(tuple(tensor.shape))}" for part, tensor in sorted(parts.items()))
        raise BadAdapter(f"{file.path}: the tensors of {name} do not belong together: {found}.") from error
    return Parsed(change, magnitude)


def _shown(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _change(scaling: Scaling, name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Change:
    """The change that a layer's tensors describe. Raises KeyError, ValueError, RuntimeError or IndexError if they describe none."""
    alpha = float(parts["alpha"]) if "alpha" in parts else None
    kernel = shape[2:]
    if "down" in parts:
        scale = scaling.factor(name, parts["down"].shape[0], alpha)
        if kernel:
            up = parts["up"].float()[:, :, 0]
            return Patches(scale * torch.einsum("or,rik->oik", up, parts["down"].float()))
        if parts["down"].dim() != 2 or parts["up"].dim() != 2 or parts["up"].shape[1] != parts["down"].shape[0]:
            raise ValueError("the matrices cannot be multiplied")
        return LowRank(parts["down"], parts["up"], scale)
    outer = _factor(parts, "outer")
    inner = _factor(parts, "inner")
    rank = next((parts[part].shape[0] for part in ("outer_b", "inner_b") if part in parts), None)
    scale = scaling.factor(name, rank, alpha)
    if kernel:
        inner = inner.float().reshape(inner.shape[0], -1, *kernel)
        return Patches(scale * torch.kron(outer.float()[..., None], inner))
    if outer.dim() != 2 or inner.dim() != 2:
        raise ValueError("a factor is not a matrix")
    return Kronecker(outer, inner, scale)


def _factor(parts: Mapping[str, Tensor], part: str) -> Tensor:
    """A Kronecker factor, which a file may hold as the product of two matrices. Raises KeyError or RuntimeError."""
    return parts[part] if part in parts else parts[f"{part}_a"].float() @ parts[f"{part}_b"].float()


def _scaling(path: Path, metadata: Mapping[str, str]) -> Scaling:
    """Reads the settings that decide about the strength of the adapter at `path`. Raises BadAdapter."""
    config = path.with_name(ADAPTER_CONFIG)
    place = str(config)
    try:
        if path.name == PEFT_WEIGHTS:
            return Scaling.of_peft(_peft_settings(config))
        place = f"the metadata of {path}"
        return Scaling.of_metadata(metadata)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadAdapter(f"{place} cannot be read ({error}). Copy it again.") from error


def _peft_settings(config: Path) -> dict[str, Any]:
    """The content of an adapter_config.json. Raises BadAdapter or ValueError."""
    if not config.is_file():
        raise BadAdapter(f"{config} is missing. Without it the adapter's strength (alpha) is unknown: copy it, too.")
    settings: dict[str, Any] = json.loads(config.read_bytes())
    kind = settings.get("peft_type")
    if kind not in ("LORA", "LOKR"):
        raise BadAdapter(f"{config} is for an adapter of the type {kind}. Sophia reads {_KINDS}.")
    return settings

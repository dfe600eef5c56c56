"""The names of tensors in the layouts that Sophia converts, and in diffusers' modules.

The original names are those of ACE-Step's own model; diffusers' `convert_ace_step_to_diffusers.py` and its modules define the new
ones. ComfyUI keeps the original names below a prefix, except in the VAE, where it has those of stable-audio-tools.
"""

import re
from typing import Final

from serve_app.weights.convert.headers import Tensor, Tensors

COMFYUI_DIT: Final = "model.diffusion_model."
COMFYUI_VAE: Final = "vae."
COMFYUI_TEXT: Final = "text_encoders.qwen3_06b.transformer."

# The order matters: `tokenizer.` is not a prefix of `detokenizer.`, but a reader may think so.
_COMPONENTS: Final = {
    "decoder.": "transformer",
    "encoder.": "condition_encoder",
    "detokenizer.": "audio_token_detokenizer",
    "tokenizer.": "audio_tokenizer",
}
"""Prefix of the original model -> component of diffusers."""

_PROJECTIONS: Final = {"proj_in.1.": "proj_in_conv.", "proj_out.1.": "proj_out_conv."}
"""The convolutions of the original's patching, which is a sequence with the convolution second."""

_ATTENTION: Final = re.compile(r"(?<=_attn\.)(q_proj|k_proj|v_proj|o_proj|q_norm|k_norm)(?=\.)")
_ATTENTION_NAMES: Final = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}

_OOBLECK_LAYER: Final = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
_ENCODER_BLOCK: Final = {"0": "res_unit1", "1": "res_unit2", "2": "res_unit3", "3": "snake1", "4": "conv1"}
_DECODER_BLOCK: Final = {"0": "snake1", "1": "conv_t1", "2": "res_unit1", "3": "res_unit2", "4": "res_unit3"}
_RESIDUAL_UNIT: Final = {"0": "snake1", "1": "conv1", "2": "snake2", "3": "conv2"}
_WEIGHT_NORM: Final = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
"""torch's newer names of a weight-normed weight."""


def without_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Returns the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def split_model(tensors: Tensors) -> tuple[dict[str, Tensors], Tensors]:
    """Splits the tensors of the original model by diffusers' components, under diffusers' names. Also returns the leftovers."""
    found: dict[str, Tensors] = {component: {} for component in _COMPONENTS.values()}
    left: Tensors = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in _COMPONENTS if name.startswith(prefix)), None)
        if prefix is not None:
            found[_COMPONENTS[prefix]][component_name(name.removeprefix(prefix))] = tensor
        elif name == "null_condition_emb":
            found["condition_encoder"][name] = tensor
        else:
            left[name] = tensor
    return found, left


def component_name(name: str) -> str:
    """Returns diffusers' name of a tensor of the transformer, the condition encoder or the audio tokenizers.

    `name` is the original one without its prefix, or already diffusers', which is returned as it is.
    """
    for old, new in _PROJECTIONS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return _ATTENTION.sub(lambda found: _ATTENTION_NAMES[found[1]], name)


def component_tensors(tensors: Tensors) -> Tensors:
    """Returns the tensors of such a component under diffusers' names."""
    return {component_name(name): tensor for name, tensor in tensors.items()}


def text_encoder_tensors(tensors: Tensors) -> Tensors:
    """Returns the tensors under Qwen3Model's names. Files of a causal language model have the prefix `model.`."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def autoencoder_tensors(tensors: Tensors) -> Tensors:
    """Returns the VAE's tensors under AutoencoderOobleck's names, with its shapes, whichever of the two namings `tensors` has."""
    lasts = {half: _last_layer(tensors, half) for half in ("encoder", "decoder")}
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        new = _oobleck_name(name, lasts)
        if new.endswith((".alpha", ".beta")) and len(tensor.shape) == 1:
            tensor = Tensor(tensor.dtype, (1, *tensor.shape, 1), tensor.data)
        renamed[new] = tensor
    return renamed


def _last_layer(tensors: Tensors, half: str) -> int:
    layers = [int(found[2]) for name in tensors if (found := _OOBLECK_LAYER.match(name)) and found[1] == half]
    return max(layers, default=0)


def _oobleck_name(name: str, lasts: dict[str, int]) -> str:
    """stable-audio-tools has a list of layers: a convolution, the blocks, an activation and another convolution."""
    for old, new in _WEIGHT_NORM.items():
        name = name.replace(old, new)
    found = _OOBLECK_LAYER.fullmatch(name)
    if not found:
        return name
    half = found[1]
    number = int(found[2])
    rest = found[3]
    if number == 0:
        return f"{half}.conv1.{rest}"
    if number == lasts[half] - 1:
        return f"{half}.snake1.{rest}"
    if number == lasts[half]:
        return f"{half}.conv2.{rest}"
    return f"{half}.block.{number - 1}.{_block_name(rest, _ENCODER_BLOCK if half == 'encoder' else _DECODER_BLOCK)}"


def _block_name(name: str, parts: dict[str, str]) -> str:
    """`layers.2.layers.1.bias` of a block -> `res_unit3.conv1.bias`. Returns unknown names as they are."""
    part = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if not part or part[1] not in parts:
        return name
    inner = re.fullmatch(r"layers\.(\d+)\.(.+)", part[2])
    if not inner or inner[1] not in _RESIDUAL_UNIT:
        return f"{parts[part[1]]}.{part[2]}"
    return f"{parts[part[1]]}.{_RESIDUAL_UNIT[inner[1]]}.{inner[2]}"

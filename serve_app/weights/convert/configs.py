"""The configuration of each component, from the shapes of its tensors.

Sizes come from shapes, because ComfyUI's files have no configuration and the original's mixes the sizes of several components.
What no shape shows comes from the source's configuration, if there is one, and is otherwise the released models'.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from serve_app import errors
from serve_app.weights.convert.headers import Shape, Tensors
from serve_app.weights.layout import LYRIC_HEADS

Config = dict[str, Any]

_RELEASED: Final[Config] = {
    "rope_theta": 1_000_000.0,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "sliding_window": 128,
}
"""What all released checkpoints of ACE-Step 1.5 have, for keys that no shape shows."""

_FSQ: Final[Config] = {"fsq_input_levels": [8, 8, 8, 5, 5, 5], "fsq_input_num_quantizers": 1}
_SAMPLE_RATE: Final = 48_000

SCHEDULER: Final[Config] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1,
    "shift": 1.0,
}
"""The pipeline shifts the timesteps itself."""


class Shapes:
    """The shapes of a component's tensors, with an error for a tensor that is missing."""

    def __init__(self, title: str, tensors: Tensors) -> None:
        """`title` names the component and its source in errors."""
        self._title = title
        self._tensors = tensors

    def of(self, name: str, dimensions: int) -> Shape:
        """Returns a tensor's shape. Raises WrongTensors if there is no such tensor with that many dimensions."""
        if name not in self._tensors:
            raise errors.WrongTensors(
                f"{self._title} has no tensor {name}. Fetch the checkpoint again, or set another source."
            )
        shape = self._tensors[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise errors.WrongTensors(
                f"{self._title}: {name} has the shape {list(shape)}, not {dimensions} dimensions. Set another source."
            )
        return shape

    def count(self, pattern: str) -> int:
        """Returns how many different numbers the group of `pattern` matches at the beginning of names."""
        return len({found[1] for name in self._tensors if (found := re.match(pattern, name))})

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._tensors


def transformer(title: str, tensors: Tensors, given: Mapping[str, Any], is_turbo: bool, version: str) -> Config:
    """Returns the configuration of AceStepTransformer1DModel. `given` is the source's configuration, empty if it has none."""
    shapes = Shapes(title, tensors)
    width, channels, patch = shapes.of("proj_in_conv.weight", 3)
    out = shapes.of("proj_out_conv.weight", 3)[1]
    return {
        "_class_name": "AceStepTransformer1DModel",
        **_attention(shapes, "layers", given),
        "hidden_size": width,
        "num_hidden_layers": shapes.count(r"layers\.(\d+)\."),
        "in_channels": channels,
        "audio_acoustic_hidden_dim": out,
        "patch_size": patch,
        "encoder_hidden_size": shapes.of("condition_embedder.weight", 2)[1],
        "layer_types": given.get("layer_types"),
        "is_turbo": is_turbo,
        "model_version": version,
        **{key: given[key] for key in (LYRIC_HEADS,) if key in given},
    }


def condition_encoder(title: str, tensors: Tensors, given: Mapping[str, Any]) -> Config:
    """Returns the configuration of AceStepConditionEncoder."""
    shapes = Shapes(title, tensors)
    return {
        "_class_name": "AceStepConditionEncoder",
        **_attention(shapes, "lyric_encoder.layers", given),
        "hidden_size": shapes.of("lyric_encoder.norm.weight", 1)[0],
        "text_hidden_dim": shapes.of("text_projector.weight", 2)[1],
        "timbre_hidden_dim": shapes.of("timbre_encoder.embed_tokens.weight", 2)[1],
        "num_lyric_encoder_hidden_layers": shapes.count(r"lyric_encoder\.layers\.(\d+)\."),
        "num_timbre_encoder_hidden_layers": shapes.count(r"timbre_encoder\.layers\.(\d+)\."),
    }


def audio_tokenizer(title: str, tensors: Tensors, given: Mapping[str, Any], window: int) -> Config:
    """Returns the configuration of AceStepAudioTokenizer. `window` is the number of latents a code, which no shape shows."""
    shapes = Shapes(title, tensors)
    width, latent = shapes.of("audio_acoustic_proj.weight", 2)
    return {
        "_class_name": "AceStepAudioTokenizer",
        **_attention(shapes, "attention_pooler.layers", given),
        **{key: given.get(key, value) for key, value in _FSQ.items()},
        "hidden_size": width,
        "audio_acoustic_hidden_dim": latent,
        "pool_window_size": window,
        "fsq_dim": shapes.of("quantizer.project_in.weight", 2)[1],
        "num_attention_pooler_hidden_layers": shapes.count(r"attention_pooler\.layers\.(\d+)\."),
    }


def audio_token_detokenizer(title: str, tensors: Tensors, given: Mapping[str, Any]) -> Config:
    """Returns the configuration of AceStepAudioTokenDetokenizer."""
    shapes = Shapes(title, tensors)
    latent, width = shapes.of("proj_out.weight", 2)
    return {
        "_class_name": "AceStepAudioTokenDetokenizer",
        **_attention(shapes, "layers", given),
        "hidden_size": width,
        "audio_acoustic_hidden_dim": latent,
        "pool_window_size": shapes.of("special_tokens", 3)[1],
        "num_attention_pooler_hidden_layers": shapes.count(r"layers\.(\d+)\."),
    }


def autoencoder(title: str, tensors: Tensors) -> Config:
    """Returns the configuration of AutoencoderOobleck.

    Each block of the encoder has a convolution whose kernel is twice the block's stride.
    """
    shapes = Shapes(title, tensors)
    width, audio_channels, _ = shapes.of("encoder.conv1.weight_v", 3)
    blocks = shapes.count(r"encoder\.block\.(\d+)\.")
    convolutions = [shapes.of(f"encoder.block.{at}.conv1.weight_v", 3) for at in range(blocks)]
    return {
        "_class_name": "AutoencoderOobleck",
        "encoder_hidden_size": width,
        "downsampling_ratios": [shape[2] // 2 for shape in convolutions],
        "channel_multiples": [shape[0] // width for shape in convolutions],
        "decoder_channels": shapes.of("decoder.conv2.weight_v", 3)[1],
        "decoder_input_channels": shapes.of("decoder.conv1.weight_v", 3)[1],
        "audio_channels": audio_channels,
        "sampling_rate": _SAMPLE_RATE,
    }


def text_encoder(title: str, tensors: Tensors) -> Config:
    """Returns the configuration of Qwen3Model, for a source without one: Qwen3-Embedding-0.6B's but for the sizes."""
    from transformers import Qwen3Config

    shapes = Shapes(title, tensors)
    words, width = shapes.of("embed_tokens.weight", 2)
    head = shapes.of("layers.0.self_attn.q_norm.weight", 1)[0]
    config = Qwen3Config(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=shapes.of("layers.0.mlp.gate_proj.weight", 2)[0],
        num_hidden_layers=shapes.count(r"layers\.(\d+)\."),
        num_attention_heads=shapes.of("layers.0.self_attn.q_proj.weight", 2)[0] // head,
        num_key_value_heads=shapes.of("layers.0.self_attn.k_proj.weight", 2)[0] // head,
        head_dim=head,
        max_position_embeddings=32_768,
        rope_theta=_RELEASED["rope_theta"],
        rms_norm_eps=_RELEASED["rms_norm_eps"],
        tie_word_embeddings=True,
    )
    return {"architectures": ["Qwen3Model"], **config.to_dict()}


def _attention(shapes: Shapes, layers: str, given: Mapping[str, Any]) -> Config:
    """The keys that all components with attention have. `layers` is the prefix of their layers."""
    head = shapes.of(f"{layers}.0.self_attn.norm_q.weight", 1)[0]
    return {
        **{key: given.get(key, value) for key, value in _RELEASED.items()},
        "intermediate_size": shapes.of(f"{layers}.0.mlp.gate_proj.weight", 2)[0],
        "num_attention_heads": shapes.of(f"{layers}.0.self_attn.to_q.weight", 2)[0] // head,
        "num_key_value_heads": shapes.of(f"{layers}.0.self_attn.to_k.weight", 2)[0] // head,
        "head_dim": head,
        "attention_bias": shapes.has(f"{layers}.0.self_attn.to_q.bias"),
    }

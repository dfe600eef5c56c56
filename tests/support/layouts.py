"""Checkpoints in the layouts of ACE-Step and ComfyUI, made from one in diffusers' layout.

The tables of names are written out from descriptions of those layouts (ACE-Step's and stable-audio-tools' modules), not derived
from the code under test.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]

_PREFIXES: Final = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}

_ORIGINAL_WORDS: Final = (
    ("proj_in_conv.", "proj_in.1."),
    ("proj_out_conv.", "proj_out.1."),
    (".to_q.", ".q_proj."),
    (".to_k.", ".k_proj."),
    (".to_v.", ".v_proj."),
    (".to_out.0.", ".o_proj."),
    (".norm_q.", ".q_norm."),
    (".norm_k.", ".k_norm."),
)

_UNIT: Final = {"snake1": "layers.0", "conv1": "layers.1", "snake2": "layers.2", "conv2": "layers.3"}
_UNITS_OF_ENCODER: Final = {"res_unit1": "layers.0", "res_unit2": "layers.1", "res_unit3": "layers.2"}
_UNITS_OF_DECODER: Final = {"res_unit1": "layers.2", "res_unit2": "layers.3", "res_unit3": "layers.4"}

ORIGINAL_CONFIG: Final[dict[str, Any]] = {
    "architectures": ["AceStepConditionGenerationModel"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "in_channels": 192,
    "audio_acoustic_hidden_dim": 64,
    "patch_size": 2,
    "rope_theta": 1_000_000,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": True,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "is_turbo": True,
    "model_version": "turbo",
    "fsq_input_levels": [8, 8, 8, 5, 5, 5],
    "lyric_alignment_layers_config": {"2": [6], "3": [10, 11]},
}
"""The original's config.json, with the random checkpoint's sizes."""


def load(checkpoint: Path, component: str) -> Weights:
    """All tensors of a component, from one file or shards."""
    tensors: Weights = {}
    for file in sorted((checkpoint / component).glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def original_model(checkpoint: Path) -> tuple[Weights, torch.Tensor]:
    """The tensors of ACE-Step's own model, and the latents of silence as its `.pt` has them."""
    tensors: Weights = {}
    for component, prefix in _PREFIXES.items():
        tensors.update({prefix + _original(name): tensor for name, tensor in load(checkpoint, component).items()})
    silence = tensors.pop("encoder.silence_latent")
    tensors["null_condition_emb"] = tensors.pop("encoder.null_condition_emb")
    return tensors, silence.transpose(1, 2).contiguous()


def stable_audio_vae(checkpoint: Path) -> Weights:
    """The VAE's tensors as stable-audio-tools names and shapes them."""
    blocks = len({name.split(".")[2] for name in load(checkpoint, "vae") if name.startswith("encoder.block.")})
    return {
        _stable_audio(name, blocks): tensor.reshape(-1) if name.endswith((".alpha", ".beta")) else tensor
        for name, tensor in load(checkpoint, "vae").items()
    }


def make_original(checkpoint: Path, folder: Path, shards: int = 1, config: dict[str, Any] = ORIGINAL_CONFIG) -> Path:
    """Writes the checkpoint in ACE-Step's layout, the model in `acestep-v15-turbo`."""
    model = folder / "acestep-v15-turbo"
    model.mkdir(parents=True)
    tensors, silence = original_model(checkpoint)
    save_sharded(tensors, model, shards)
    torch.save(silence, model / "silence_latent.pt")
    (model / "config.json").write_text(json.dumps(config))
    shutil.copytree(checkpoint / "vae", folder / "vae")
    shutil.copytree(checkpoint / "text_encoder", folder / "Qwen3-Embedding-0.6B")
    shutil.copytree(checkpoint / "tokenizer", folder / "Qwen3-Embedding-0.6B", dirs_exist_ok=True)
    return folder


def save_sharded(tensors: Weights, folder: Path, shards: int) -> None:
    """Writes model.safetensors, or that many shards and their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for at in range(shards):
        file = f"model-{at + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[at::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def make_all_in_one(checkpoint: Path, folder: Path) -> Path:
    """Writes ComfyUI's all-in-one file, with a planner of two tensors."""
    tensors, _ = original_model(checkpoint)
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    whole |= {f"vae.{name}": tensor for name, tensor in stable_audio_vae(checkpoint).items()}
    text = load(checkpoint, "text_encoder")
    whole |= {f"text_encoders.qwen3_06b.transformer.model.{name}": tensor for name, tensor in text.items()}
    whole |= {
        f"text_encoders.qwen3_2b.transformer.model.{name}": torch.zeros(3) for name in ("norm.weight", "x.weight")
    }
    (folder / "checkpoints").mkdir(parents=True)
    save_file(whole, folder / "checkpoints" / "ace_step_1.5_turbo_aio.safetensors")
    return folder


def make_split_files(checkpoint: Path, folder: Path, names: Iterable[str] = ("acestep_v1.5_turbo",)) -> Path:
    """Writes ComfyUI's split files: the diffusion model under each of `names`, the text encoder and the VAE."""
    tensors, _ = original_model(checkpoint)
    for part in ("diffusion_models", "text_encoders", "vae"):
        (folder / part).mkdir(parents=True)
    for name in names:
        save_file(tensors, folder / "diffusion_models" / f"{name}.safetensors")
    text = {f"model.{name}": tensor for name, tensor in load(checkpoint, "text_encoder").items()}
    save_file(text, folder / "text_encoders" / "qwen_0.6b_ace15.safetensors")
    save_file(stable_audio_vae(checkpoint), folder / "vae" / "ace_1.5_vae.safetensors")
    return folder


def make_parts(checkpoint: Path, folder: Path) -> Path:
    """Writes what ComfyUI's files lack, as ACE-Step's repository has it: the tokenizer and the latents of silence."""
    (folder / "acestep-v15-turbo").mkdir(parents=True)
    torch.save(original_model(checkpoint)[1], folder / "acestep-v15-turbo" / "silence_latent.pt")
    shutil.copytree(checkpoint / "tokenizer", folder / "Qwen3-Embedding-0.6B")
    return folder


def _original(name: str) -> str:
    for new, old in _ORIGINAL_WORDS:
        name = name.replace(new, old)
    return name


def _stable_audio(name: str, blocks: int) -> str:
    half, part, rest = name.split(".", 2)
    ends = {"conv1": 0, "snake1": blocks + 1, "conv2": blocks + 2}
    if part in ends:
        return f"{half}.layers.{ends[part]}.{rest}"
    number, inner, rest = rest.split(".", 2)
    units = _UNITS_OF_ENCODER if half == "encoder" else _UNITS_OF_DECODER
    block = f"{half}.layers.{int(number) + 1}"
    if inner in units:
        module, rest = rest.split(".", 1)
        return f"{block}.{units[inner]}.{_UNIT[module]}.{rest}"
    others = {"snake1": 3, "conv1": 4} if half == "encoder" else {"snake1": 0, "conv_t1": 1}
    return f"{block}.layers.{others[inner]}.{rest}"

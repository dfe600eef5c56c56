"""Checkpoints that tests fetch, and changed copies of the random one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve_app import weights
from serve_app.config import ModelArgs
from tests.support.hub import COMMIT, REPOSITORY

RANDOM = ModelArgs(source="random")
REMOTE = ModelArgs(source=REPOSITORY, revision=COMMIT)
LARGEST = "condition_encoder/diffusion_pytorch_model.safetensors"

_QWEN3_EMBEDDING: Final[dict[str, Any]] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_669,
    "max_position_embeddings": 32_768,
}
"""Qwen3-Embedding-0.6B's."""
_VAE: Final[dict[str, Any]] = {
    "encoder_hidden_size": 128,
    "downsampling_ratios": [2, 4, 4, 6, 10],
    "channel_multiples": [1, 2, 4, 8, 16],
    "decoder_channels": 128,
    "decoder_input_channels": 64,
    "audio_channels": 2,
    "sampling_rate": 48_000,
}
"""The released one's."""


def changed(checkpoint: Path, folder: Path, part: str, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """A copy of the checkpoint in which `change` was applied to the tensors of one component."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, folder)
    [file] = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def enlarged(checkpoint: Path, folder: Path, megabytes: int) -> Path:
    """A larger copy that is as fast: its text encoder has rows for words that no prompt contains."""
    tokens = megabytes * 1_000_000 // (64 * 4)
    words = np.random.default_rng(0).standard_normal((tokens, 64), dtype=np.float32) / 50
    changed(checkpoint, folder, "text_encoder", lambda tensors: tensors.update({"embed_tokens.weight": words}))
    edit(folder / "text_encoder" / "config.json", {"vocab_size": tokens})
    return folder


def in_bfloat16(checkpoint: Path) -> Path:
    """A copy in bfloat16, the format of the released checkpoint."""
    import torch
    from safetensors.torch import load_file, save_file

    for file in checkpoint.rglob("*.safetensors"):
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return checkpoint


def full_size(checkpoint: Path, folder: Path) -> Path:
    """A copy with the released turbo model's shapes, in bfloat16: 6.3 GB of random weights."""
    import torch
    from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Config, Qwen3Model

    def save(part: str, make: Callable[[], Any]) -> None:
        # On "meta" the modules' own initialisation, which takes minutes, does nothing.
        with weights.quiet_libraries(), torch.device("meta"):
            module = make().bfloat16()
        module = module.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
        for tensor in module.state_dict().values():
            tensor.uniform_(-0.02, 0.02)
        module.save_pretrained(folder / part)

    torch.manual_seed(0)
    shutil.copytree(checkpoint, folder)
    save("text_encoder", lambda: Qwen3Model(Qwen3Config(**_QWEN3_EMBEDDING)))
    save("condition_encoder", AceStepConditionEncoder)
    save("transformer", lambda: AceStepTransformer1DModel(is_turbo=True, model_version="turbo"))
    save("vae", lambda: AutoencoderOobleck(**_VAE))
    save("audio_tokenizer", AceStepAudioTokenizer)
    save("audio_token_detokenizer", AceStepAudioTokenDetokenizer)
    return folder


def edit(file: Path, changes: dict[str, Any]) -> None:
    """Overwrites some keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))

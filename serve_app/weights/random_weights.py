"""The random checkpoint: ACE-Step 1.5's real classes and file layout with tiny random weights, from a fixed seed.

It generates noise. Tests of sizes, layouts and speed use it.
"""

import contextlib
import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from serve_app.weights import manifest
from serve_app.weights.layout import RANDOM_MARKER
from serve_app.weights.progress import Report
from serve_app.weights.quiet import quiet_libraries

_VOCABULARY: Final = (
    "# Instruction # Caption # Metas bpm timesignature keyscale duration seconds # Languages # Lyric [verse] [chorus]"
)
_END: Final = "<|endoftext|>"
_WIDTH: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_ROPE: Final[dict[str, Any]] = {"rope_theta": 1e6, "sliding_window": 128}
_LATENT: Final[dict[str, Any]] = {
    "audio_acoustic_hidden_dim": 64,
    "pool_window_size": 5,
    "num_attention_pooler_hidden_layers": 1,
}
_CODES: Final[dict[str, Any]] = {
    "fsq_dim": 64,
    "fsq_input_levels": [8, 8, 8, 5, 5, 5],
    "fsq_input_num_quantizers": 1,
}
_TEXT: Final[dict[str, Any]] = {"num_hidden_layers": 2, "max_position_embeddings": 4096}
_CONDITION: Final[dict[str, Any]] = {
    "text_hidden_dim": 64,
    "timbre_hidden_dim": 64,
    "num_lyric_encoder_hidden_layers": 2,
    "num_timbre_encoder_hidden_layers": 2,
}
_TRANSFORMER: Final[dict[str, Any]] = {
    "num_hidden_layers": 4,
    "in_channels": 192,
    "audio_acoustic_hidden_dim": 64,
    "patch_size": 2,
    "encoder_hidden_size": 64,
    "is_turbo": True,
    "model_version": "turbo",
}
# 2 * 4 * 4 * 6 * 10 = 1920 samples a latent, so 25 latents a second at 48 kHz, as in the released model.
_VAE: Final[dict[str, Any]] = {
    "encoder_hidden_size": 8,
    "downsampling_ratios": [2, 4, 4, 6, 10],
    "channel_multiples": [1, 2, 2, 4, 4],
    "decoder_channels": 4,
    "decoder_input_channels": 64,
    "audio_channels": 2,
    "sampling_rate": 48_000,
}


def build(cache: Path, report: Report) -> Path:
    """Builds the random checkpoint unless it exists, and returns its folder. Of several processes, the first to finish wins."""
    folder = cache / f"random-{_recipe_hash()}"
    if not folder.exists():
        report("download", None, "building the random checkpoint (tiny random weights)")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
            _save(Path(scratch) / "checkpoint")
            # Fails if another process was faster: a folder with files is not replaced. Its bytes are the same.
            with contextlib.suppress(OSError):
                (Path(scratch) / "checkpoint").rename(folder)
    report("download", 1.0, "the random checkpoint is here")
    return folder


def _recipe_hash() -> str:
    """Returns a hash of what determines the checkpoint: its sizes, and the versions of the libraries that build it."""
    libraries = [version(name) for name in ("torch", "diffusers", "transformers")]
    recipe = [_VOCABULARY, _WIDTH, _ROPE, _LATENT, _CODES, _TEXT, _CONDITION, _TRANSFORMER, _VAE, libraries]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]


def _save(folder: Path) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()

    # Modules are initialised from the global generator, so its state is restored afterwards.
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        _pipeline().save_pretrained(folder)
    (folder / RANDOM_MARKER).write_text("These weights are random: this checkpoint generates noise.\n")
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    manifest.write(
        folder, "random", _recipe_hash(), {name: manifest.digest(folder / name).hexdigest() for name in names}
    )


def _pipeline() -> Any:
    from diffusers import (
        AceStepPipeline,
        AceStepTransformer1DModel,
        AutoencoderOobleck,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Config, Qwen3Model

    words = _tokenizer()
    return AceStepPipeline(
        tokenizer=words,
        text_encoder=Qwen3Model(Qwen3Config(**_WIDTH, **_TEXT, vocab_size=len(words))),
        condition_encoder=AceStepConditionEncoder(**_WIDTH, **_ROPE, **_CONDITION),
        transformer=AceStepTransformer1DModel(**_WIDTH, **_ROPE, **_TRANSFORMER),
        vae=AutoencoderOobleck(**_VAE),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=AceStepAudioTokenizer(**_WIDTH, **_ROPE, **_LATENT, **_CODES),
        audio_token_detokenizer=AceStepAudioTokenDetokenizer(**_WIDTH, **_ROPE, **_LATENT),
    )


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    # All 256 bytes are tokens, so that any text in any language can be read. Sorted: the bindings' order changes.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[_END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([_VOCABULARY], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_END, pad_token=_END)

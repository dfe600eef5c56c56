"""Saves what the stages trained as pipelines that plain `from_pretrained` loads."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepPipeline

from miniature import aligning, codes, vae
from miniature.autoencoder import Networks as Autoencoder
from miniature.compact import fold_second_time, round_weights
from miniature.conditioning import Networks
from miniature.lyric_heads import HEADS
from miniature.transformer import averaged, state_file
from serve_app.weights.layout import ENCODER_FILE, LYRIC_HEADS

CHECKED_SECONDS = 10.0
MANTISSA_BITS = 5
"""Of all weights but the autoencoder's. A bit more makes a transformer 1.2 MB larger when it is packed."""
FIRST_LAYER_BITS = 7
"""Of turbo's first layer, to which its songs are most sensitive: with 5 bits, it alone moves a song's latents by up to 16 %."""
AUTOENCODER_BITS = 9
"""Rounding the decoder adds noise to what it plays: 72 of 100 songs have the requested instrument with 7 bits, 80 without."""


def export(work: Path, output: Path, checkpoint: Path, variant: str) -> Path:
    """Saves one variant's pipeline with the averaged weights of its training; returns its folder.

    Parts that no stage has trained are those of `checkpoint`. If turbo's heads have learnt where lyrics are sung, the transformer's
    config names them. Raises FileNotFoundError if the variant has no state.
    """
    aligned = aligning.trained(work, checkpoint) if variant == "turbo" else None
    networks = (aligned or averaged(Networks.load(checkpoint), state_file(work, variant))).eval()
    _round(networks, variant)
    fold_second_time(networks.transformer)  # after the rounding: it adds a large constant to small numbers
    networks.transformer.register_to_config(is_turbo=variant == "turbo", model_version=variant)
    if aligned is not None:
        networks.transformer.register_to_config(**{LYRIC_HEADS: HEADS})
    pipeline = AceStepPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.register_modules(
        text_encoder=networks.text_encoder,
        condition_encoder=networks.condition_encoder,
        transformer=networks.transformer,
        **_other_parts(work),
    )
    folder = output / variant
    pipeline.save_pretrained(folder)
    autoencoder = vae.trained(work)
    if autoencoder is None and (checkpoint / ENCODER_FILE).exists():
        autoencoder = Autoencoder.load(checkpoint)
    if autoencoder is not None:
        autoencoder.save_encoder(folder)
    return folder


def _round(networks: Networks, variant: str) -> None:
    first_layer = networks.transformer.layers[0]
    kept = {name: value.clone() for name, value in first_layer.state_dict().items()}
    round_weights(networks, MANTISSA_BITS)
    if variant == "turbo":
        first_layer.load_state_dict(kept)
        round_weights(first_layer, FIRST_LAYER_BITS)


def is_trained(work: Path, variant: str) -> bool:
    """Whether a variant has a state to export."""
    return state_file(work, variant).exists() or (variant == "turbo" and aligning.state_file(work).exists())


def _other_parts(work: Path) -> dict[str, Any]:
    """The autoencoder and the audio codes, if they have been trained."""
    parts = {}
    autoencoder = vae.trained(work)
    if autoencoder is not None:
        parts["vae"] = autoencoder.autoencoder()
        round_weights(parts["vae"], AUTOENCODER_BITS)
    networks = codes.trained(work)
    if networks is not None:
        parts["audio_tokenizer"], parts["audio_token_detokenizer"] = codes.for_pipeline(networks)
        round_weights(parts["audio_tokenizer"], MANTISSA_BITS)
        round_weights(parts["audio_token_detokenizer"], MANTISSA_BITS)
    return parts


def play(folder: Path) -> Any:
    """Loads a saved pipeline and plays a song with it: (2, samples) at 48 kHz.

    Raises RuntimeError if the song has a value that is no number, or is silent.
    """
    pipeline = AceStepPipeline.from_pretrained(folder, dtype=torch.float32)
    audio = pipeline(
        "solo piano, 120 bpm, C major, calm",
        lyrics="[Instrumental]",
        audio_duration=CHECKED_SECONDS,
        num_inference_steps=8,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    ).audios[0]
    loudness = float(audio.square().mean().sqrt())
    if not loudness > 0.01:
        raise RuntimeError(
            f"the pipeline in {folder} played a song of loudness {loudness}: more than 0.01 was expected"
        )
    return audio

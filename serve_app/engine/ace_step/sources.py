"""Sources and references: audio and audio codes as the latents that the transformer and the condition encoder are given.

This file imports torch: import it only after `loading.import_packages`.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, Final

import numpy as np
import torch

from serve_app.engine.ace_step.generating import song_frames
from serve_app.music import FRAME_SAMPLES, SAMPLE_RATE, SourcePlan

_REFERENCE_PIECES: Final = 3
_PIECE_SAMPLES: Final = 10 * SAMPLE_RATE
REFERENCE_FRAMES: Final = 750
"""How much reference audio the condition encoder hears, in latent frames: three pieces of ten seconds."""

SHORTEST_FRAMES: Final = 128
"""The least number of latent frames, 5.12 s, that are sampled, as in the original (acestep/core/generation/handler/
conditioning_target.py). A shorter song is cut from them."""

_SILENT_SUM: Final = 1e-6
"""Audio whose magnitudes add up to no more than this is silence, as in the original."""


def silence(pipe: Any, frames: int) -> torch.Tensor:
    """Returns the latents of `frames` frames of silence, of shape (1, frames, 64)."""
    latents: torch.Tensor = pipe.prepare_src_latents(pipe.device, pipe.transformer.dtype, latent_length=frames)[0]
    return latents


def fitted(pipe: Any, latents: torch.Tensor, frames: int) -> torch.Tensor:
    """Returns `latents`, of shape (1, any number of frames, 64), cut or followed by silence so that they have `frames` frames."""
    missing = frames - latents.shape[1]
    if missing <= 0:
        return latents[:, :frames]
    return torch.cat([latents, silence(pipe, missing)], dim=1)


def source_latents(pipe: Any, plan: SourcePlan, samples: np.ndarray, kept_latents: np.ndarray | None) -> torch.Tensor:
    """Returns the source in the place that `plan` gives it in the song, with silence around it, of shape (1, frames, 64).

    `samples` (frames, 2) is the source, `kept_latents` (latent frames, 64) its latents if they are known.
    """
    if kept_latents is None:
        latents = encoded(pipe, samples)
    else:
        latents = torch.from_numpy(np.asarray(kept_latents, np.float32))[None]
        latents = latents.to(pipe.device, pipe.transformer.dtype)
    latents = fitted(pipe, latents, ceil(len(samples) / FRAME_SAMPLES))
    before = plan.offset // FRAME_SAMPLES
    if before:
        latents = torch.cat([silence(pipe, before), latents], dim=1)
    return fitted(pipe, latents, max(SHORTEST_FRAMES, song_frames(plan.duration)))


def encoded(pipe: Any, samples: np.ndarray) -> torch.Tensor:
    """Returns the latents of `samples` (frames, 2), of shape (1, latent frames, 64). An incomplete last frame is filled with zeros.

    The VAE encodes tile by tile. Its distribution's mode is taken, so that the same audio gives the same song.
    """
    frames = ceil(len(samples) / FRAME_SAMPLES)
    if np.abs(samples).sum() <= _SILENT_SUM:
        return silence(pipe, frames)
    audio = torch.zeros(1, 2, frames * FRAME_SAMPLES)
    audio[0, :, : len(samples)] = torch.from_numpy(np.ascontiguousarray(samples.T)).clamp(-1.0, 1.0)
    latents: torch.Tensor = pipe.vae.encode(audio.to(pipe.device, pipe.vae.dtype)).latent_dist.mode()
    return latents.transpose(1, 2).to(pipe.transformer.dtype)


def reference_latents(pipe: Any, samples: np.ndarray | None, seed: int) -> torch.Tensor:
    """Returns what the condition encoder hears as the reference, of shape (1, REFERENCE_FRAMES, 64).

    `seed` decides which parts of the audio are heard. No audio, and silent audio, is silence.
    """
    if samples is None or np.abs(samples).sum() <= _SILENT_SUM:
        return silence(pipe, REFERENCE_FRAMES)
    return encoded(pipe, reference_pieces(samples, seed))


def reference_pieces(samples: np.ndarray, seed: int) -> np.ndarray:
    """Returns the parts of `samples` (frames, 2) that are heard as a reference: 30 s, of shape (1,440,000, 2).

    Audio below 30 s is repeated. From each third of the audio, ten seconds are taken from a start that `seed` decides. The
    original draws it anew each time.
    """
    repeats = ceil(_REFERENCE_PIECES * _PIECE_SAMPLES / len(samples))
    samples = np.tile(samples, (repeats, 1))
    third = len(samples) // _REFERENCE_PIECES
    random = np.random.default_rng(seed)
    starts = [piece * third + int(random.integers(third - _PIECE_SAMPLES + 1)) for piece in range(_REFERENCE_PIECES)]
    return np.concatenate([samples[start : start + _PIECE_SAMPLES] for start in starts])


def heard_as_codes(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Returns `latents` (1, frames, 64) as the model hears a cover's source: turned into audio codes and back."""
    quantised, _ = _tokenized(pipe, latents)
    heard: torch.Tensor = pipe.audio_token_detokenizer(quantised)
    return heard[:, : latents.shape[1]]


@torch.inference_mode()
def codes_of(pipe: Any, latents: torch.Tensor) -> tuple[int, ...] | None:
    """Returns the audio codes of `latents` (1, frames, 64), one for five frames, with which a request makes a cover of them.

    None if the checkpoint has no tokenizer, or one of several codes for five frames: a request cannot send those.
    """
    if pipe.audio_tokenizer is None or pipe.audio_tokenizer.quantizer.num_quantizers != 1:
        return None
    _, indices = _tokenized(pipe, latents.to(pipe.transformer.dtype))
    return tuple(indices.flatten().tolist())


def _tokenized(pipe: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the quantised vectors (1, codes, channels) and the codes (1, codes, quantizers). Silence fills up the frames."""
    tokens: tuple[torch.Tensor, torch.Tensor] = pipe.audio_tokenizer.tokenize(
        latents, silence(pipe, pipe.audio_tokenizer.pool_window_size)
    )
    return tokens


def latents_of_codes(pipe: Any, codes: Sequence[int], frames: int) -> torch.Tensor:
    """Returns the latents of audio codes, cut or followed by silence, of shape (1, frames, 64).

    A code beyond the codebook becomes its last code, as in the original.
    """
    largest = pipe.audio_tokenizer.quantizer.codebook_size - 1
    known = [min(code, largest) for code in codes]
    indices = torch.tensor(known, device=pipe.device).view(1, -1, 1)
    quantised = pipe.audio_tokenizer.quantizer.get_output_from_indices(indices).to(pipe.transformer.dtype)
    return fitted(pipe, pipe.audio_token_detokenizer(quantised), frames)

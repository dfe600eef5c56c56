"""The steps around sampling: seeds and texts of a request, the progress of the decoder, and the post-processing of the audio."""

import contextlib
from collections.abc import Callable, Iterator
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from serve_app import errors
from serve_app.engine.protocol import OnStep
from serve_app.music import MAX_SEED, SAMPLE_RATE, MusicRequest
from serve_app.weights import Report

if TYPE_CHECKING:
    import torch

_TARGET_PEAK: Final = 10.0 ** (-1.0 / 20.0)
"""-1 dBFS. AceStepPipeline.__call__ normalises every song to this peak (diffusers 0.42.1, `target_amp`)."""

LATENTS_PER_S: Final = 25
"""Latent frames per second of ACE-Step 1.5's VAE, each of 1920 samples."""

_INSTRUMENTAL: Final = ("", "[instrumental]", "[inst]")
"""Values of `lyrics` that mean an instrumental."""

_SILENCE: Final = 1e-5
"""A song whose peak is below -100 dBFS, less than one step of a 16-bit file, counts as silent: normalised, it would be hiss."""


def seeds(request: MusicRequest) -> list[int]:
    """Returns one seed per variation: the request's seed, then the numbers after it, modulo MAX_SEED + 1."""
    if request.seed is None:
        raise ValueError("the request has no seed: the caller must set one")
    return [(request.seed + i) % (MAX_SEED + 1) for i in range(request.variations)]


def retake_seed(request: MusicRequest, variation: int) -> int:
    """Returns the seed of the noise that a variation, counted from 0, mixes in."""
    if request.retake_seed is None:
        raise ValueError("the request has no retake_seed: the caller must set one")
    return (request.retake_seed + variation) % (MAX_SEED + 1)


def song_frames(duration: float) -> int:
    """Returns the number of latent frames that hold `duration` seconds of audio."""
    return ceil(duration * LATENTS_PER_S)


def lyrics_and_language(request: MusicRequest) -> tuple[str, str]:
    """Returns the lyrics and their language for the model. An instrumental has the lyrics `[Instrumental]`, language `unknown`.

    This is how ACE-Step labels its training data (acestep/training/dataset_builder_modules).
    """
    if request.lyrics.strip().lower() in _INSTRUMENTAL:
        return "[Instrumental]", "unknown"
    return request.lyrics, request.vocal_language


def metadata(request: MusicRequest, duration: float) -> dict[str, Any]:
    """Returns duration, tempo, key and time signature, which become part of the prompt, as arguments of `encode_prompt`."""
    return {
        "audio_duration": duration,
        "bpm": request.bpm,
        "keyscale": request.keyscale,
        "timesignature": request.timesignature,
    }


def stop_if(stopped: Callable[[], bool]) -> None:
    """Raises Stopped if `stopped()` is true, that is, if the worker no longer holds the job."""
    if stopped():
        raise errors.Stopped


def preparing_progress(on_step: OnStep, stopped: Callable[[], bool]) -> Report:
    """Returns what fetching a song's adapters reports to: steps of the stage `preparing`, in percent. It raises Stopped, too."""

    def report(_phase: str, fraction: float | None, _detail: str) -> None:
        stop_if(stopped)
        on_step("preparing", round(100 * (fraction or 0)), 100)

    return report


class TileProgress:
    """Reports the progress of decoding over all variations.

    AutoencoderOobleck._tiled_decode calls its decoder once per tile.
    """

    def __init__(self, vae: Any, latents: "torch.Tensor", on_step: OnStep, stopped: Callable[[], bool]) -> None:
        self._vae = vae
        self._on_step = on_step
        self._stopped = stopped
        songs, frames, _ = latents.shape
        stride = vae.tile_latent_min_length - 2 * vae.tile_latent_overlap
        self._total = songs * (ceil(frames / stride) if frames > vae.tile_latent_min_length else 1)
        self._done = 0

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Inside the block, raises Stopped before a tile if the job must stop, and reports each decoded tile."""
        hooks = [
            self._vae.decoder.register_forward_pre_hook(lambda module, inputs: stop_if(self._stopped)),
            self._vae.decoder.register_forward_hook(lambda module, inputs, output: self._count()),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self) -> None:
        self._done += 1
        self._on_step("decoding", self._done, self._total)


def post_process(raw: np.ndarray, request: MusicRequest, seed: int) -> tuple[np.ndarray, float]:
    """Cuts `raw` (channels, frames) to the requested duration, normalises and fades it.

    Returns samples of shape (frames, 2), and the gain by which they were normalised.

    The arithmetic is that of AceStepPipeline.__call__: it divides by the peak if that is above 1 (anti-clip), then scales the
    peak to -1 dBFS. `raw` is changed in place, because a song of ten minutes takes 230 MB.

    Raises:
        BadAudio: the samples have NaN or infinity, or are silent.
    """
    raw = raw[:, : round(request.duration * SAMPLE_RATE)]
    peak = _peak(raw)
    if not np.isfinite(peak) or peak < _SILENCE:
        what = "silence" if peak < _SILENCE else "NaN or infinite samples"
        steps = request.steps or "the default number of"
        raise errors.BadAudio(f"The model produced {what} with seed {seed} and {steps} steps. Try another seed.")
    if peak > 1.0:
        raw /= peak
    level = _TARGET_PEAK / max(_peak(raw), 1e-6)
    raw *= level
    fade(raw, request)
    return np.ascontiguousarray(raw.T), float(level / max(peak, 1.0))


def fade(samples: np.ndarray, request: MusicRequest) -> None:
    """Fades `samples` (channels, frames) in and out, linearly and in place, over at most their whole length."""
    frames = samples.shape[1]
    rise = min(round(request.fade_in * SAMPLE_RATE), frames)
    fall = min(round(request.fade_out * SAMPLE_RATE), frames)
    samples[:, :rise] *= np.linspace(0.0, 1.0, rise, endpoint=False, dtype=np.float32)
    samples[:, frames - fall :] *= np.linspace(1.0, 0.0, fall, dtype=np.float32)


def _peak(samples: np.ndarray) -> float:
    """Returns max |x| without a temporary array; NaN if any value is NaN."""
    return float(np.maximum(samples.max(), -samples.min()))

"""What a generation is made of: settings of the pipeline, tiles of its decoder, and the finish of its audio."""

import contextlib
from collections.abc import Callable, Iterator
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from serve_app import errors
from serve_app.config import Variant
from serve_app.engine.protocol import OnStep
from serve_app.music import MAX_SEED, SAMPLE_RATE, VARIANT_DEFAULTS, MusicRequest

if TYPE_CHECKING:
    import torch

_TARGET_PEAK: Final = 10.0 ** (-1.0 / 20.0)
"""-1 dBFS, to which AceStepPipeline.__call__ normalises every song (diffusers 0.42.1, `target_amp`)."""

_INSTRUMENTAL: Final = ("", "[instrumental]", "[inst]")
"""Lyrics that stand for none."""

_SILENCE: Final = 1e-5
"""A peak below this (-100 dBFS, under a 16-bit file's smallest step) is silence: normalised, it would be hiss."""


def seeds(request: MusicRequest) -> list[int]:
    """One seed a variation: the request's own, and those after it."""
    if request.seed is None:
        raise ValueError("the caller fills in the seed")
    return [(request.seed + i) % (MAX_SEED + 1) for i in range(request.variations)]


def settings(request: MusicRequest, variant: Variant) -> dict[str, Any]:
    """Steps, guidance and shift, with the variant's defaults where the request says nothing."""
    defaults = VARIANT_DEFAULTS[variant]
    guidance = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    # The pipeline refuses an interval that ends before it starts; here it means that guidance is never applied.
    never = request.cfg_interval_start > request.cfg_interval_end
    return {
        "num_inference_steps": defaults.steps if request.steps is None else request.steps,
        "guidance_scale": 1.0 if never or variant == "turbo" else guidance,
        "shift": defaults.shift if request.shift is None else request.shift,
        # Ours are noise levels, as the original's (start <= t <= end); the pipeline's are 1 - t.
        "cfg_interval_start": 0.0 if never else 1.0 - request.cfg_interval_end,
        "cfg_interval_end": 1.0 if never else 1.0 - request.cfg_interval_start,
    }


def words(request: MusicRequest) -> tuple[str, str]:
    """Lyrics and their language as the model was trained on them: an instrumental has a tag for lyrics, and no language.

    So the original's trainers label their data (acestep/training/dataset_builder_modules, `[Instrumental]` with `unknown`).
    """
    if request.lyrics.strip().lower() in _INSTRUMENTAL:
        return "[Instrumental]", "unknown"
    return request.lyrics, request.vocal_language


def metas(request: MusicRequest) -> dict[str, Any]:
    """What the prompt's template says of the song beside its words."""
    return {
        "audio_duration": request.duration,
        "bpm": request.bpm,
        "keyscale": request.keyscale,
        "timesignature": request.timesignature,
    }


def stop_if(stopped: Callable[[], bool]) -> None:
    """Raises Stopped when the worker no longer holds the job."""
    if stopped():
        raise errors.Stopped


class Tiles:
    """Counts the VAE's tiles over all variations: AutoencoderOobleck._tiled_decode calls its decoder once a tile."""

    def __init__(self, vae: Any, latents: "torch.Tensor", on_step: OnStep, stopped: Callable[[], bool]) -> None:
        self._vae = vae
        self._on_step = on_step
        self._stopped = stopped
        songs, frames, _ = latents.shape
        stride = vae.tile_latent_min_length - 2 * vae.tile_latent_overlap
        self._total = songs * (ceil(frames / stride) if frames > vae.tile_latent_min_length else 1)
        self._done = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Reports each tile that is decoded inside the block, and asks before each whether to stop."""
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


def finished(raw: np.ndarray, request: MusicRequest, seed: int) -> np.ndarray:
    """AceStepPipeline.__call__'s post-processing of `raw` (channels, frames), then the exact length, as (frames, 2).

    The pipeline divides by the peak where it is above 1 (anti-clip), then scales the peak to -1 dBFS. Same arithmetic, in
    place, since a song of ten minutes takes 230 MB; over the whole decoded length, before the cut, as there.

    Raises:
        BadAudio: not finite, or silent.
    """
    peak = _peak(raw)
    if not np.isfinite(peak) or peak < _SILENCE:
        what = "silence" if peak < _SILENCE else "values that are not finite"
        steps = request.steps or "the default number of"
        raise errors.BadAudio(f"The model gave {what} with seed {seed} and {steps} steps. Try another seed.")
    if peak > 1.0:
        raw /= peak
    raw *= _TARGET_PEAK / max(_peak(raw), 1e-6)
    frames = round(request.duration * SAMPLE_RATE)
    return np.ascontiguousarray(raw[:, :frames].T)


def _peak(samples: np.ndarray) -> float:
    """max |x| without a temporary array; NaN where any value is NaN."""
    return float(np.maximum(samples.max(), -samples.min()))

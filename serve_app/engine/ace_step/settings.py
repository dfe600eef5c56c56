"""How the songs of a request are sampled: the request's values, or the defaults of the model's variant."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from serve_app.config import Variant
from serve_app.music import VARIANT_DEFAULTS, DcwMode, GuidanceMode, MusicRequest, Sampler, defaults_of

_TURBO_STEPS: Final = 20
"""Turbo models take at most this many custom timesteps."""

_TURBO_SCHEDULE_STEPS: Final = 8
_TURBO_SHIFTS: Final = (1.0, 2.0, 3.0)

_ANGLE_BASED: Final = ("adg", "adg_w_norm", "adg_wo_clip")


@dataclass(frozen=True)
class SamplingSettings:
    """How the songs of a request are sampled."""

    levels: tuple[float, ...]
    """The noise level at which each step starts, falling from 1; the last step ends at 0."""
    sampler: Sampler
    guidance_scale: float
    """Strength of guidance; 1 or less is none."""
    guidance_mode: GuidanceMode
    guidance_start: float
    guidance_end: float
    """Guidance applies at noise levels t with start <= t <= end, as in the original ACE-Step."""
    dcw_mode: DcwMode | None
    """None: no correction in the wavelet domain."""
    dcw_strength: float
    dcw_high_strength: float


def sampling_settings(request: MusicRequest, variant: Variant, source: str | None = None) -> SamplingSettings:
    """Returns the settings of `request`. A value that it omits is the model's default; turbo models have no guidance."""
    defaults = defaults_of(variant, source)
    guidance = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    corrects = not request.edits and (defaults.dcw if request.dcw is None else request.dcw)
    turns = request.guidance_mode in _ANGLE_BASED
    return SamplingSettings(
        levels=_levels(request, variant),
        sampler="euler" if request.edits else request.sampler,
        guidance_scale=1.0 if variant == "turbo" else guidance,
        guidance_mode="apg" if request.edits and turns else request.guidance_mode,
        guidance_start=request.cfg_interval_start,
        guidance_end=request.cfg_interval_end,
        dcw_mode=request.dcw_mode if corrects else None,
        dcw_strength=request.dcw_strength,
        dcw_high_strength=request.dcw_high_strength,
    )


def ignored_settings(request: MusicRequest, variant: Variant, source: str | None = None) -> Iterator[str]:
    """Yields one sentence for each setting of `request` that has no effect, or another one than it says."""
    if variant == "turbo":
        for name in ("guidance_scale", "guidance_mode"):
            if getattr(request, name) != MusicRequest.model_fields[name].default:
                yield f"{name} is ignored by turbo models."
    elif request.cfg_interval_start > request.cfg_interval_end:
        yield "guidance is never applied: cfg_interval_start is greater than cfg_interval_end."
    if request.timesteps:
        for name in ("steps", "shift"):
            if getattr(request, name) is not None:
                yield f"{name} is ignored: timesteps replace it."
        levels = _custom_levels(request.timesteps, variant)
        if not np.allclose(levels, sorted(set(request.timesteps), reverse=True)[: len(levels)], atol=1e-4):
            shown = ", ".join(f"{level:.4g}" for level in levels)
            yield f"timesteps were moved to levels that turbo models were trained for: {shown}."
    if request.edits:
        yield from _ignored_by_edits(request)
    yield from _without_effect(request, corrects=sampling_settings(request, variant, source).dcw_mode is not None)


def _ignored_by_edits(request: MusicRequest) -> Iterator[str]:
    """Yields one sentence for each setting of an edit that changes nothing, as in the original."""
    for name in ("sampler", "dcw", "retake_variance"):
        value = getattr(request, name)
        if value and value != MusicRequest.model_fields[name].default:
            yield f"{name} is ignored by task_type edit."
    if request.guidance_mode in _ANGLE_BASED:
        yield f"guidance_mode {request.guidance_mode} is ignored by task_type edit, which uses apg instead."


def _without_effect(request: MusicRequest, *, corrects: bool) -> Iterator[str]:
    """Yields one sentence for each field that another one makes useless. `corrects`: DCW is on."""
    given = request.model_fields_set
    if "cover_strength" in given and request.task_type == "text2music" and not request.audio_codes:
        yield "cover_strength is ignored: there is no source and there are no audio_codes."
    if "repaint_strength" in given and request.repaint_mode != "balanced":
        yield f"repaint_strength is ignored: repaint_mode is {request.repaint_mode}."
    if "retake_seed" in given and request.retake_variance == 0.0:
        yield "retake_seed is ignored: retake_variance is 0."
    for name in ("dcw_mode", "dcw_strength", "dcw_high_strength"):
        if name in given and not corrects:
            yield f"{name} is ignored: dcw is off."
    if "dcw_high_strength" in given and corrects and request.dcw_mode != "double":
        yield f"dcw_high_strength is ignored: dcw_mode is {request.dcw_mode}."


def _levels(request: MusicRequest, variant: Variant) -> tuple[float, ...]:
    """Returns the noise levels of `request`: its timesteps, or those that follow from its steps and shift."""
    defaults = VARIANT_DEFAULTS[variant]
    if request.timesteps:
        return _custom_levels(request.timesteps, variant)
    return shifted_levels(
        defaults.steps if request.steps is None else request.steps,
        defaults.shift if request.shift is None else request.shift,
    )


def shifted_levels(steps: int, shift: float) -> tuple[float, ...]:
    """Returns `steps` noise levels t, equally far apart from 1 downwards, moved by t' = shift * t / (1 + (shift - 1) * t).

    The arithmetic is that of AceStepPipeline._get_timestep_schedule, whose rounding songs depend on.
    """
    import torch

    levels = torch.linspace(1.0, 0.0, steps + 1)[:-1]
    if shift != 1.0:
        levels = shift * levels / (1 + (shift - 1) * levels)
    return tuple(levels.tolist())


def _custom_levels(timesteps: Sequence[float], variant: Variant) -> tuple[float, ...]:
    """Returns the noise levels of custom timesteps, in falling order and each once.

    Turbo models know only the levels of their own schedules, so each timestep is moved to the nearest of these.
    """
    levels = sorted({float(np.float32(timestep)) for timestep in timesteps}, reverse=True)
    if variant == "turbo":
        known = turbo_levels()
        nearest = [min(known, key=lambda level: abs(level - wanted)) for wanted in levels[:_TURBO_STEPS]]
        levels = sorted(set(nearest), reverse=True)
    return tuple(levels)


def turbo_levels() -> list[float]:
    """Returns the noise levels that turbo models were distilled on: those of eight steps with the shifts 1, 2 and 3."""
    return sorted({level for shift in _TURBO_SHIFTS for level in shifted_levels(_TURBO_SCHEDULE_STEPS, shift)})

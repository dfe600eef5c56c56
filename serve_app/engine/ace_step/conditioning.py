"""Conditioning: what the transformer is told about the songs of a request, as slots for sampling.

This file imports torch and, through sampling.py, diffusers: import it only after `loading.import_packages`.
"""

from math import cos, pi, sin
from typing import Any

import torch
from diffusers.pipelines.ace_step.pipeline_ace_step import TASK_INSTRUCTIONS

from serve_app.engine.ace_step.flow_edit import Edit
from serve_app.engine.ace_step.generating import lyrics_and_language, metadata, retake_seed, seeds
from serve_app.engine.ace_step.guidance import Guidance
from serve_app.engine.ace_step.kept_parts import KeptParts
from serve_app.engine.ace_step.sampling import Slot, Told
from serve_app.engine.ace_step.settings import SamplingSettings
from serve_app.engine.ace_step.tasks import Canvas, binding
from serve_app.engine.ace_step.wavelets import Correction
from serve_app.music import MAX_LYRICS_TOKENS, MAX_PROMPT_TOKENS, MusicRequest


def open_slots(
    pipe: Any, request: MusicRequest, settings: SamplingSettings, canvas: Canvas, reference: torch.Tensor
) -> list[Slot]:
    """Returns one slot for each variation of `request`, before its first step.

    `reference` (1, frames, 64) has the latents of the reference audio. All variations share it and the canvas, but for their codes.
    """
    conditions = _conditions(pipe, request, canvas, canvas.instruction, reference)
    later = _later_conditions(pipe, request, canvas, reference)
    of_source = _conditions(pipe, _as_source(request), canvas, canvas.instruction, reference) if request.edits else None
    levels = _levels(request, settings, canvas)
    slots = []
    for i, seed in enumerate(seeds(request)):
        random = torch.Generator(canvas.context.device).manual_seed(seed)
        noise = _mixed_noise(request, i, canvas, random)
        slots.append(
            Slot(
                told=Told(conditions[i : i + 1], canvas.context_of(i)),
                latents=_start(request, canvas, noise, levels[0]),
                levels=levels,
                random=random,
                sampler=settings.sampler,
                guidance=_guidance(pipe, settings),
                correction=_correction(settings),
                told_later=None if later is None else Told(later[i : i + 1], canvas.silent_context),
                switch_step=int(len(levels) * request.cover_strength),
                kept=_kept_parts(request, canvas, noise, len(levels)),
            )
        )
        if of_source is not None:
            slots[-1].edit = _edit(pipe, request, settings, slots[-1], Told(of_source[i : i + 1], canvas.context))
    return slots


def _as_source(request: MusicRequest) -> MusicRequest:
    """Returns the request with the words of its source. Those that an edit leaves out are the song's."""
    prompt = request.prompt if request.source_prompt is None else request.source_prompt
    lyrics = request.lyrics if request.source_lyrics is None else request.source_lyrics
    return request.model_copy(update={"prompt": prompt, "lyrics": lyrics})


def _edit(pipe: Any, request: MusicRequest, settings: SamplingSettings, slot: Slot, told: Told) -> Edit:
    """Returns how the song of `slot`, which starts as its source, is edited. `told` has the words of the source."""
    source = slot.latents
    counterpart = Slot(told, source, slot.levels, slot.random, guidance=_guidance(pipe, settings))
    skipped = len(settings.levels) - len(slot.levels)
    return Edit(source, counterpart, int(len(settings.levels) * request.edit_end) - skipped, request.edit_draws)


def _conditions(
    pipe: Any, request: MusicRequest, canvas: Canvas, instruction: str, reference: torch.Tensor
) -> torch.Tensor:
    """Returns the conditions of all variations, of shape (variations, tokens, width).

    The variations are encoded as a batch, although all rows mean the same: a batch of one rounds differently, and the same
    request must give the same bytes as in earlier versions.
    """
    lyrics, language = lyrics_and_language(request)
    text, text_mask, lyric, lyric_mask = pipe.encode_prompt(
        prompt=[request.prompt] * request.variations,
        lyrics=[lyrics] * request.variations,
        vocal_language=[language] * request.variations,
        device=pipe.device,
        instruction=instruction,
        max_text_length=MAX_PROMPT_TOKENS,
        max_lyric_length=MAX_LYRICS_TOKENS,
        **metadata(request, canvas.text_duration),
    )
    conditions: torch.Tensor = pipe.condition_encoder(
        text_hidden_states=text,
        text_attention_mask=text_mask,
        lyric_hidden_states=lyric,
        lyric_attention_mask=lyric_mask,
        refer_audio_acoustic_hidden_states_packed=reference.expand(request.variations, -1, -1).contiguous(),
        refer_audio_order_mask=torch.arange(request.variations, device=pipe.device),
    )[0]
    return conditions


def _later_conditions(pipe: Any, request: MusicRequest, canvas: Canvas, reference: torch.Tensor) -> torch.Tensor | None:
    """Returns the conditions of the steps that `cover_strength` leaves to the words alone; None if there are no such steps."""
    hears_source = canvas.source is not None or request.audio_codes is not None
    if request.cover_strength == 1.0 or not hears_source:
        return None
    return _conditions(pipe, request, canvas, TASK_INSTRUCTIONS["text2music"], reference)


def _levels(request: MusicRequest, settings: SamplingSettings, canvas: Canvas) -> tuple[float, ...]:
    """Returns the noise levels of the steps.

    A cover may start at the level nearest to 1 - cover_noise_strength. An edit leaves out the share `edit_start` of the steps.
    """
    if request.edits:
        return settings.levels[int(len(settings.levels) * request.edit_start) :]
    if not _starts_from_source(request, canvas):
        return settings.levels
    wanted = 1.0 - request.cover_noise_strength
    nearest = min(settings.levels, key=lambda level: abs(level - wanted))
    return settings.levels[settings.levels.index(nearest) :]


def _start(request: MusicRequest, canvas: Canvas, noise: torch.Tensor, level: float) -> torch.Tensor:
    """Returns what sampling starts from, of shape (1, frames, 64): noise, or the source with noise up to `level`.

    An edit starts from the source itself.
    """
    if canvas.source is not None and request.edits:
        return canvas.source
    if canvas.source is None or not _starts_from_source(request, canvas):
        return noise
    return level * noise + (1.0 - level) * canvas.source


def _starts_from_source(request: MusicRequest, canvas: Canvas) -> bool:
    return canvas.source is not None and request.cover_noise_strength > 0.0


def _kept_parts(request: MusicRequest, canvas: Canvas, noise: torch.Tensor, steps: int) -> KeptParts | None:
    """Returns what a repaint of `steps` steps keeps, or None if the song has no kept parts."""
    if canvas.source is None or not canvas.windows:
        return None
    bound = binding(request)
    return KeptParts(canvas.source, noise, canvas.windows, round(bound.held_share * steps), bound.ramp_frames)


def _mixed_noise(request: MusicRequest, variation: int, canvas: Canvas, random: torch.Generator) -> torch.Tensor:
    """Returns the noise of a variation, of shape (1, frames, 64). A retake mixes in the noise of its own seed."""
    noise = _noise(canvas.context, random)
    if request.retake_variance == 0.0:
        return noise
    other = torch.Generator(canvas.context.device).manual_seed(retake_seed(request, variation))
    angle = request.retake_variance * pi / 2
    return cos(angle) * noise + sin(angle) * _noise(canvas.context, other)


def _noise(context: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Returns the next noise of `random` for a song with `context`, of shape (1, frames, 64)."""
    shape = (1, context.shape[1], context.shape[2] // 2)
    return torch.randn(shape, generator=random, device=context.device, dtype=context.dtype)


def _guidance(pipe: Any, settings: SamplingSettings) -> Guidance | None:
    """Returns the guidance of one song, or None if `settings` have none."""
    if settings.guidance_scale <= 1.0:
        return None
    return Guidance(
        settings.guidance_scale,
        settings.guidance_start,
        settings.guidance_end,
        pipe.condition_encoder.null_condition_emb,
        settings.guidance_mode,
    )


def _correction(settings: SamplingSettings) -> Correction | None:
    """Returns the correction of one song in the wavelet domain, or None if `settings` have none."""
    if settings.dcw_mode is None:
        return None
    return Correction(settings.dcw_mode, settings.dcw_strength, settings.dcw_high_strength)

"""Conditioning: what the transformer is told about the songs of a request, as slots for sampling.

This file imports torch and, through sampling.py, diffusers: import it only after `loading.import_packages`.
"""

from copy import copy
from math import ceil
from typing import Any, Final

import torch

from serve_app.engine.ace_step.generating import SamplingSettings, lyrics_and_language, metadata, seeds
from serve_app.engine.ace_step.sampling import Guidance, Slot
from serve_app.music import MAX_LYRICS_TOKENS, MAX_PROMPT_TOKENS, MusicRequest

_REFERENCE_S: Final = 30
"""How much reference audio the condition encoder hears."""


def open_slots(
    pipe: Any, request: MusicRequest, settings: SamplingSettings, context: torch.Tensor, reference: torch.Tensor
) -> list[Slot]:
    """Returns one slot for each variation of `request`, before its first step.

    `context` (1, frames, 64 + 64) has the latents of the source and the mask of the frames to generate, `reference`
    (1, frames, 64) the latents of the reference audio. All variations share both. Each has a scheduler of its own, which counts
    its steps.
    """
    conditions = _conditions(pipe, request, reference)
    scheduler = _scheduler(pipe, settings)
    return [
        Slot(
            conditions=conditions[i : i + 1],
            context=context,
            latents=_noise(seed, context),
            scheduler=copy(scheduler),
            guidance=_guidance(pipe, settings),
        )
        for i, seed in enumerate(seeds(request))
    ]


def silent_context(pipe: Any, duration: float) -> torch.Tensor:
    """Returns the context of a song without a source: silence in `duration` seconds of frames, all of them to be generated."""
    frames = ceil(duration * pipe.latents_per_second)
    silence, _ = pipe.prepare_src_latents(pipe.device, pipe.transformer.dtype, latent_length=frames)
    return torch.cat([silence, torch.ones_like(silence)], dim=-1)


def silent_reference(pipe: Any) -> torch.Tensor:
    """Returns the reference of a song without reference audio: the latents of silence, of shape (1, frames, 64)."""
    frames = ceil(_REFERENCE_S * pipe.latents_per_second)
    silence: torch.Tensor = pipe.condition_encoder.silence_latent[:, :frames]
    return silence.to(pipe.device, pipe.transformer.dtype)


def _conditions(pipe: Any, request: MusicRequest, reference: torch.Tensor) -> torch.Tensor:
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
        instruction=pipe._get_task_instruction(request.task_type),
        max_text_length=MAX_PROMPT_TOKENS,
        max_lyric_length=MAX_LYRICS_TOKENS,
        **metadata(request),
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


def _noise(seed: int, context: torch.Tensor) -> torch.Tensor:
    """Returns the noise of a song with `context`, of shape (1, frames, 64)."""
    shape = (1, context.shape[1], context.shape[2] // 2)
    generator = torch.Generator(context.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=context.device, dtype=context.dtype)


def _scheduler(pipe: Any, settings: SamplingSettings) -> Any:
    """Returns a scheduler with the schedule of `settings`."""
    levels = pipe._get_timestep_schedule(settings.steps, settings.shift, pipe.device, torch.float32)
    scheduler = copy(pipe.scheduler)
    scheduler.set_timesteps(sigmas=levels.tolist(), device=pipe.device)
    return scheduler


def _guidance(pipe: Any, settings: SamplingSettings) -> Guidance | None:
    """Returns the guidance of one song, or None if `settings` have none."""
    if settings.guidance_scale <= 1.0:
        return None
    null_conditions = pipe.condition_encoder.null_condition_emb
    return Guidance(settings.guidance_scale, settings.guidance_start, settings.guidance_end, null_conditions)

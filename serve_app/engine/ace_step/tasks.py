"""Tasks: what each one shows to the transformer, and which parts of the source it keeps.

The rules are those of the original ACE-Step (acestep/core/generation/handler); docs/PARITY.md says where they differ.
This file imports torch: import it only after `loading.import_packages`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AceStepPipeline

from serve_app import errors
from serve_app.engine.ace_step.generating import LATENTS_PER_S, song_frames
from serve_app.engine.ace_step.sources import (
    SHORTEST_FRAMES,
    heard_as_codes,
    latents_of_codes,
    silence,
    source_latents,
)
from serve_app.engine.protocol import SongInputs
from serve_app.music import SAMPLE_RATE, ChunkMaskMode, MusicRequest, SourcePlan

_AUTO_MASK: Final = 2.0
"""The mask's value that leaves it to the model which frames are new."""

_TOLD_AS: Final = {"cover-nofsq": "cover", "stems": "extract", "edit": "text2music"}
"""The task that the model is told, where that is another one."""

_RAMP_S: Final = 0.05
"""Length of the ramps between kept and new samples in the repaint mode conservative."""


@dataclass(frozen=True)
class Canvas:
    """What the songs of a request are made on. Latents have the shape (1, frames, 64)."""

    context: torch.Tensor
    """The source's latents as the model is shown them, then the mask of the new frames: (1, frames, 64 + 64). Songs with audio
    codes of their own have a row each: (songs, frames, 64 + 64)."""
    silent_context: torch.Tensor
    """The same mask with silence for the source, for the steps in which the model does not hear it."""
    instruction: str
    text_duration: float
    """The length in seconds that the text says. For a source that is extended it is the source's, as in the original."""
    source: torch.Tensor | None = None
    """The source itself; None if there is none."""
    windows: tuple[slice, ...] = ()
    """The frames that are new, if the others are kept."""

    def context_of(self, song: int) -> torch.Tensor:
        """Returns the context of a song, counted from 0, of shape (1, frames, 64 + 64)."""
        return self.context if len(self.context) == 1 else self.context[song : song + 1]


@dataclass(frozen=True)
class Binding:
    """How a repaint binds its new parts to the source (`_resolve_repaint_config` in the original's generate_music.py)."""

    held_share: float
    """Share of the steps after which the kept frames are replaced by the source."""
    ramp_frames: int
    """Latent frames over which the new part's latents pass into the source's."""
    ramp_s: float
    """Seconds over which the new part's samples pass into the source's, within the new part."""


def binding(request: MusicRequest) -> Binding:
    """Returns how the request's repaint is bound: in full when conservative, not at all when aggressive."""
    firmness = {"conservative": 1.0, "aggressive": 0.0, "balanced": 1.0 - request.repaint_strength}[
        request.repaint_mode
    ]
    return Binding(firmness, round(LATENTS_PER_S * firmness), _RAMP_S * firmness)


def canvas(
    pipe: Any, request: MusicRequest, plan: SourcePlan | None, inputs: SongInputs, mask_mode: ChunkMaskMode
) -> Canvas:
    """Returns the canvas of the request's songs. `plan` is None for a song without a source.

    Raises:
        InvalidRequest: the task needs audio codes, and the checkpoint has no audio tokenizer.
    """
    if request.task_type == "cover" or request.audio_codes:
        _require_tokenizer(pipe)
    if plan is None or inputs.source is None:
        return _canvas_of_words(pipe, request, inputs, mask_mode)
    source = source_latents(pipe, plan, inputs.source, inputs.source_latents)
    windows = tuple(window.frames for window in plan.windows)
    mask = _mask(source, windows, mask_mode)
    nothing = silence(pipe, source.shape[1])
    return Canvas(
        context=torch.cat([_shown(pipe, request, source, nothing, windows), mask], dim=-1),
        silent_context=torch.cat([nothing, mask], dim=-1),
        instruction=instruction(request),
        text_duration=len(inputs.source) / SAMPLE_RATE,
        source=source,
        windows=windows if request.task_type == "repaint" else (),
    )


def _canvas_of_words(pipe: Any, request: MusicRequest, inputs: SongInputs, mask_mode: ChunkMaskMode) -> Canvas:
    """Returns the canvas of a song without a source: silence, or what the song's audio codes stand for."""
    frames = max(SHORTEST_FRAMES, song_frames(request.duration))
    nothing = silence(pipe, frames)
    codes = _codes_of_songs(request, inputs)
    shown = torch.cat([latents_of_codes(pipe, of_song, frames) for of_song in codes]) if codes else nothing
    mask = _mask(nothing, (), mask_mode)
    return Canvas(
        context=torch.cat([shown, mask.expand(len(shown), -1, -1)], dim=-1),
        silent_context=torch.cat([nothing, mask], dim=-1),
        instruction=instruction(request),
        text_duration=request.duration,
    )


def _codes_of_songs(request: MusicRequest, inputs: SongInputs) -> list[Sequence[int]]:
    """Returns the audio codes of each song, or one list if all songs have the same; empty if they have none."""
    if len(inputs.codes) > 1:
        return [inputs.codes[song % len(inputs.codes)] for song in range(request.variations)]
    return [request.audio_codes] if request.audio_codes else []


def _shown(
    pipe: Any, request: MusicRequest, source: torch.Tensor, nothing: torch.Tensor, windows: Sequence[slice]
) -> torch.Tensor:
    """Returns the source as the model is shown it.

    A cover's goes through the audio codes, and a repaint's has silence in the windows. An edit's is not shown at all: it is what
    the song starts from.
    """
    if request.edits:
        return nothing
    if request.task_type == "cover":
        return heard_as_codes(pipe, source)
    shown = source.clone()
    if request.task_type == "repaint":
        for window in windows:
            shown[:, window] = nothing[:, window]
    return shown


def _mask(like: torch.Tensor, windows: Sequence[slice], mode: ChunkMaskMode) -> torch.Tensor:
    """Returns the mask of a song's frames, in the shape of `like`: 1 for new, 0 for kept, or 2 if the model is to decide."""
    if mode == "auto":
        return torch.full_like(like, _AUTO_MASK)
    if not windows:
        return torch.ones_like(like)
    mask = torch.zeros_like(like)
    for window in windows:
        mask[:, window] = 1.0
    return mask


def instruction(request: MusicRequest) -> str:
    """Returns the sentence that names the request's task, and its tracks if it has any, to the model. Audio codes make a cover."""
    task = "cover" if request.audio_codes else _TOLD_AS.get(request.task_type, request.task_type)
    text: str = AceStepPipeline._get_task_instruction(task, request.track, request.tracks)
    return text


def _require_tokenizer(pipe: Any) -> None:
    if pipe.audio_tokenizer is None or pipe.audio_token_detokenizer is None:
        raise errors.InvalidRequest(
            "task_type: covers and audio_codes need the parts audio_tokenizer and audio_token_detokenizer, which this checkpoint "
            "lacks; cover-nofsq needs none of them"
        )

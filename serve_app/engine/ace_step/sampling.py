"""Sampling: turns noise into the latents of songs, one denoising step of many songs at a time.

A song has a slot with all that it needs, so songs with different settings can share a pass of the transformer, and a song can
join or leave between two steps. With the same inputs the latents are those of diffusers' AceStepPipeline, bit for bit on the CPU
(tests/integration/test_sampling.py).

This file imports torch and diffusers: import it only after `loading.import_packages`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

_MOMENTUM: Final = -0.75
_NORM_THRESHOLD: Final = 2.5
_ETA: Final = 0.0
"""Constants of the original ACE-Step's guidance (acestep/models/common/guidance_registry)."""


@dataclass
class Guidance:
    """Adaptive projected guidance (Sadat et al., arXiv 2410.02416) of one song. Holds the momentum between its steps."""

    scale: float
    start: float
    end: float
    """Guidance applies at noise levels t with start <= t <= end."""
    null_conditions: torch.Tensor
    """The learned embedding that stands for "no conditions", of shape (1, 1, width)."""
    _momentum: MomentumBuffer = field(default_factory=lambda: MomentumBuffer(_MOMENTUM))

    def guided(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Returns the guided velocity. All three velocities have the shape (1, frames, 64). Updates the momentum."""
        # This formulation adds the guidance to the conditional velocity, so a scale of 1 must add nothing.
        velocity: torch.Tensor = normalized_guidance(
            conditional,
            unconditional,
            guidance_scale=self.scale - 1.0,
            momentum_buffer=self._momentum,
            eta=_ETA,
            norm_threshold=_NORM_THRESHOLD,
            use_original_formulation=True,
            norm_dim=1,
        )
        return velocity


@dataclass
class Slot:
    """One song on its way from noise to music. `advance` moves it one step further."""

    conditions: torch.Tensor
    """What the condition encoder gives for text, lyrics and reference audio, of shape (1, tokens, width)."""
    context: torch.Tensor
    """The source's latents, then the mask of the frames to generate, of shape (1, frames, 64 + 64)."""
    latents: torch.Tensor
    """Noise before the first step, music after the last, of shape (1, frames, 64)."""
    scheduler: Any
    """A FlowMatchEulerDiscreteScheduler of this song's own, with its schedule set."""
    guidance: Guidance | None = None
    step: int = 0
    """The number of steps done."""

    def __post_init__(self) -> None:
        self.scheduler.set_begin_index(0)
        self._levels: list[float] = self.scheduler.timesteps.tolist()

    @property
    def finished(self) -> bool:
        return self.step == len(self._levels)

    @property
    def noise_level(self) -> float:
        """The noise level t at which the next step starts: 1 is noise, 0 is music."""
        return self._levels[self.step]

    @property
    def active_guidance(self) -> Guidance | None:
        """The guidance, if it applies to the next step."""
        guidance = self.guidance
        return guidance if guidance is not None and guidance.start <= self.noise_level <= guidance.end else None

    def follow(self, velocity: torch.Tensor) -> None:
        """Takes the next step along `velocity`, of shape (1, frames, 64)."""
        self.latents = self.scheduler.step(velocity, self.noise_level, self.latents, return_dict=False)[0]
        self.step += 1


def advance(transformer: Any, slots: Iterable[Slot]) -> None:
    """Moves each of `slots`, of which none is finished, one step further.

    Songs of the same length with equally many tokens share one pass of the transformer. Others get passes of their own, because
    the transformer's cross-attention takes no mask for padding.
    """
    batches: dict[tuple[torch.Size, torch.Size], list[Slot]] = defaultdict(list)
    for slot in slots:
        batches[slot.latents.shape, slot.conditions.shape].append(slot)
    for batch in batches.values():
        velocities = _velocities(transformer, batch)
        for slot, velocity in zip(batch, velocities, strict=True):
            slot.follow(velocity)


def _velocities(transformer: Any, batch: Sequence[Slot]) -> list[torch.Tensor]:
    """Returns the velocity of each song, of shape (1, frames, 64).

    The pass has one row for each song, then one without conditions for each song that is guided in this step.
    """
    guided = [(slot, guidance) for slot in batch if (guidance := slot.active_guidance) is not None]
    rows = [*batch, *(slot for slot, _ in guided)]
    conditions = [slot.conditions for slot in batch]
    conditions += [guidance.null_conditions.expand_as(slot.conditions) for slot, guidance in guided]
    latents = torch.cat([slot.latents for slot in rows])
    levels = torch.tensor([slot.noise_level for slot in rows], dtype=latents.dtype, device=latents.device)
    [predicted] = transformer(
        hidden_states=latents,
        timestep=levels,
        timestep_r=levels,
        encoder_hidden_states=torch.cat(conditions),
        context_latents=torch.cat([slot.context for slot in rows]),
        return_dict=False,
    )
    conditional = predicted[: len(batch)].split(1)
    unconditional = iter(predicted[len(batch) :].split(1))
    return [
        velocity if (guidance := slot.active_guidance) is None else guidance.guided(velocity, next(unconditional))
        for slot, velocity in zip(batch, conditional, strict=True)
    ]

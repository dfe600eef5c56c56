"""Sampling: turns noise into the latents of songs, one denoising step of many songs at a time.

A song has a slot with all that it needs, so songs with different settings can share a pass of the transformer, and a song can
join or leave between two steps. Where diffusers' AceStepPipeline can do the same, its latents are these, bit for bit on the CPU
(tests/integration/test_sampling.py).

This file imports torch and diffusers: import it only after `loading.import_packages`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from serve_app.engine.ace_step.adapters.blend import Blend
from serve_app.engine.ace_step.flow_edit import Edit
from serve_app.engine.ace_step.guidance import Guidance
from serve_app.engine.ace_step.kept_parts import KeptParts
from serve_app.engine.ace_step.wavelets import Correction
from serve_app.music import Sampler

Check = Callable[[], None]


def _go_on() -> None:
    """Stops nothing."""


@dataclass(frozen=True)
class Told:
    """What the transformer is told about a song."""

    conditions: torch.Tensor
    """What the condition encoder gives for text, lyrics and reference audio, of shape (1, tokens, width)."""
    context: torch.Tensor
    """The source's latents, then the mask of the frames to generate, of shape (1, frames, 64 + 64)."""


@dataclass
class Slot:
    """One song on its way from noise to music. `advance` moves it one step further."""

    told: Told
    latents: torch.Tensor
    """Noise before the first step, music after the last, of shape (1, frames, 64). An edit starts from its source."""
    levels: Sequence[float]
    """The noise level t at which each step starts, falling: 1 is noise, 0 is music. The last step ends at 0."""
    random: torch.Generator
    """The source of the noise that the sampler `sde` adds after a step, and that an edit adds in it."""
    sampler: Sampler = "euler"
    guidance: Guidance | None = None
    correction: Correction | None = None
    told_later: Told | None = None
    """What the transformer is told from step `switch_step` on, instead of `told`; None if that does not change."""
    switch_step: int = 0
    kept: KeptParts | None = None
    edit: Edit | None = None
    adapters: Blend | None = None
    step: int = 0
    """The number of steps done."""

    @property
    def finished(self) -> bool:
        return self.step == len(self.levels)

    @property
    def result(self) -> torch.Tensor:
        """The latents after the last step, of shape (1, frames, 64), with ramps into the kept parts, if there are any."""
        return self.latents if self.kept is None else self.kept.blended(self.latents)

    @property
    def noise_level(self) -> float:
        """The noise level at which the next step starts."""
        return self.levels[self.step]

    @property
    def next_level(self) -> float:
        """The noise level at which the next step ends."""
        return self.levels[self.step + 1] if self.step + 1 < len(self.levels) else 0.0

    @property
    def told_now(self) -> Told:
        """What the transformer is told in the next step."""
        return self.told if self.told_later is None or self.step < self.switch_step else self.told_later

    @property
    def is_edited(self) -> bool:
        """Whether the next step edits."""
        return self.edit is not None and self.step < self.edit.steps

    @property
    def needs_corrector(self) -> bool:
        """Whether the next step evaluates the model at its end, too. Heun's last step is Euler's, as at the original's turbo."""
        return self.sampler == "heun" and self.next_level > 0.0

    def predicted(self, velocity: torch.Tensor) -> torch.Tensor:
        """Returns the latents at the end of the next step along `velocity`. Both have the shape (1, frames, 64)."""
        return (self.latents.float() + (self.next_level - self.noise_level) * velocity).to(self.latents.dtype)

    def follow(self, velocity: torch.Tensor, velocity_at_end: torch.Tensor | None = None) -> None:
        """Takes the next step along `velocity`, of shape (1, frames, 64), which may be corrected by the velocity at its end."""
        music = self.latents.float() - self.noise_level * velocity
        if self.sampler == "sde" and self.next_level > 0.0:
            after = (1.0 - self.next_level) * music + self.next_level * self.fresh_noise()
        elif velocity_at_end is not None:
            after = self.predicted(0.5 * (velocity + velocity_at_end)).float()
        else:
            after = self.predicted(velocity).float()
        if self.correction is not None and self.next_level > 0.0:
            after = self.correction.corrected(after, music, self.noise_level)
        if self.kept is not None and self.step < self.kept.steps:
            after = self.kept.held(after, self.next_level)
        self.latents = after.to(self.latents.dtype)
        self.step += 1

    def use(self, adapters: Blend) -> None:
        """Play with these adapters."""
        self.adapters = adapters
        if self.edit is not None:
            self.edit.counterpart.adapters = adapters

    def end_edit(self) -> None:
        """Add the noise of the next step to a song whose edited steps are done. From then on it is sampled as usual."""
        if self.edit is not None and self.step == self.edit.steps:
            _, self.latents = self.edit.noisy_pair(self.latents, self.noise_level, self.fresh_noise())

    def fresh_noise(self) -> torch.Tensor:
        """Returns the next noise of `random`, of shape (1, frames, 64)."""
        return torch.randn(
            self.latents.shape, generator=self.random, device=self.latents.device, dtype=self.latents.dtype
        )


@dataclass(frozen=True)
class _Question:
    """The velocity of `slot` at `latents`, of shape (1, frames, 64), and noise level `level` is asked for."""

    slot: Slot
    latents: torch.Tensor
    level: float
    is_corrector: bool = False

    @property
    def guidance(self) -> Guidance | None:
        """The guidance, if it applies at this noise level."""
        guidance = self.slot.guidance
        return guidance if guidance is not None and guidance.applies(self.level) else None


def advance(transformer: Any, slots: Iterable[Slot], check: Check = _go_on) -> None:
    """Moves each of `slots`, of which none is finished, one step further. `check` is called before each pass, and may raise.

    Songs of the same length with equally many tokens and the same adapters share one pass of the transformer. Others get passes of
    their own, because the transformer's cross-attention takes no mask for padding, and adapters change all rows of a pass.
    """
    edited: list[Slot] = []
    sampled: list[Slot] = []
    for slot in slots:
        slot.end_edit()
        (edited if slot.is_edited else sampled).append(slot)
    for slot in edited:
        _edit(transformer, slot, check)
    _sample(transformer, sampled, check)


def _edit(transformer: Any, slot: Slot, check: Check) -> None:
    """Moves an edited song one step further."""
    edit = slot.edit
    if edit is None:
        raise ValueError("the slot has no edit")

    def velocities(source: torch.Tensor, song: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        questions = [
            _Question(edit.counterpart, source, slot.noise_level),
            _Question(slot, song, slot.noise_level),
        ]
        of_source, of_song = _velocities(transformer, questions, check)
        return of_source, of_song

    slot.follow(edit.velocity(slot, velocities))


def _sample(transformer: Any, slots: Sequence[Slot], check: Check) -> None:
    """Moves each of `slots` one step further from noise to music."""
    velocities = _velocities(transformer, [_Question(slot, slot.latents, slot.noise_level) for slot in slots], check)
    correctors = [
        _Question(slot, slot.predicted(velocity), slot.next_level, is_corrector=True)
        for slot, velocity in zip(slots, velocities, strict=True)
        if slot.needs_corrector
    ]
    at_end = {
        id(question.slot): velocity
        for question, velocity in zip(correctors, _velocities(transformer, correctors, check), strict=True)
    }
    for slot, velocity in zip(slots, velocities, strict=True):
        slot.follow(velocity, at_end.get(id(slot)))


def _velocities(transformer: Any, questions: Sequence[_Question], check: Check) -> list[torch.Tensor]:
    """Returns the answer to each question, of shape (1, frames, 64)."""
    batches: dict[tuple[torch.Size, torch.Size, Blend | None], list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        slot = question.slot
        batches[question.latents.shape, slot.told_now.conditions.shape, slot.adapters].append(number)
    answers: dict[int, torch.Tensor] = {}
    for numbers in batches.values():
        check()
        found = _one_pass(transformer, [questions[number] for number in numbers])
        answers.update(zip(numbers, found, strict=True))
    return [answers[number] for number in range(len(questions))]


def _one_pass(transformer: Any, batch: Sequence[_Question]) -> list[torch.Tensor]:
    """Returns the velocity of each song, of shape (1, frames, 64).

    The pass has one row for each song, then one without conditions for each song that is guided in this step.
    """
    guided = [(question, guidance) for question in batch if (guidance := question.guidance) is not None]
    rows = [*batch, *(question for question, _ in guided)]
    conditions = [question.slot.told_now.conditions for question in batch]
    conditions += [
        guidance.null_conditions.expand_as(question.slot.told_now.conditions) for question, guidance in guided
    ]
    latents = torch.cat([question.latents for question in rows])
    levels = torch.tensor([question.level for question in rows], dtype=latents.dtype, device=latents.device)
    adapters = batch[0].slot.adapters
    with adapters.applied(transformer) if adapters is not None else nullcontext():
        [predicted] = transformer(
            hidden_states=latents,
            timestep=levels,
            timestep_r=levels,
            encoder_hidden_states=torch.cat(conditions),
            context_latents=torch.cat([question.slot.told_now.context for question in rows]),
            return_dict=False,
        )
    conditional = predicted[: len(batch)].split(1)
    unconditional = iter(predicted[len(batch) :].split(1))
    return [
        velocity
        if (guidance := question.guidance) is None
        else guidance.guided(
            velocity, next(unconditional), question.latents, question.level, is_corrector=question.is_corrector
        )
        for question, velocity in zip(batch, conditional, strict=True)
    ]

"""The training of a variant: text encoder, condition encoder and transformer together."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miniature import stage
from miniature.conditioning import Networks, load_tokenizer
from miniature.flow import Batch, training_losses, validation_losses
from miniature.optimizers import Optimizers, rate_at
from miniature.tasks import BASE_SHARES, HELD_OUT, TURBO_SHARES, Clips, Coder, Example, Examples, Texts

VARIANTS: Mapping[str, Mapping[str, float]] = {"turbo": TURBO_SHARES, "base": BASE_SHARES}
# Turbo learns the guided velocity, so that one pass plays what guidance needs two for.
# Base keeps its two passes, so that a client's scale has its meaning.
GUIDANCE: Mapping[str, float] = {"turbo": 3.0, "base": 1.0}
CLIP_FRAMES = 256
CROP_FRAMES = 160
REPORT_EVERY = 50
VALIDATE_EVERY = 500
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
VALIDATION_CLIPS = 8


@dataclass(frozen=True)
class Material:
    """What a training learns from. `code` is None until the audio codes are trained; then there are no covers."""

    clips: Clips
    texts: Texts
    code: Coder | None


def state_file(work: Path, variant: str) -> Path:
    """Where a variant's training keeps its state."""
    return work / f"transformer-{variant}.pt"


class Training:
    """One variant's training: `step` until the time is over, `save` to go on later from the same step."""

    def __init__(self, networks: Networks, file: Path, guidance: float) -> None:
        self.networks = networks
        self.steps = 0
        self._file = file
        self._guidance = guidance
        self._optimizers = Optimizers(networks)

    @property
    def average(self) -> Any:
        return self._optimizers.average

    def compile(self) -> None:
        """Compiles the layers, which takes a minute or two and saves a fifth of each step."""
        torch._dynamo.config.recompile_limit = 32  # both networks, two kinds of layers, batches of two lengths
        for transformer in (self.networks.transformer, self.average.transformer):
            for layer in transformer.layers:
                layer.compile(dynamic=True)

    def step(self, batch: Batch, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One step; returns the losses and noise levels of the batch's examples."""
        generator = torch.Generator().manual_seed(self.steps)
        losses, times = training_losses(
            self.networks, self.average, batch, guidance=self._guidance, generator=generator
        )
        self._optimizers.step(losses.mean(), rate)
        self.steps += 1
        return losses.detach(), times

    def save(self) -> None:
        state = {"steps": self.steps, "networks": self.networks.state_dict(), **self._optimizers.state()}
        stage.save_state(state, self._file)

    def resume(self) -> bool:
        """Goes on from the saved state, if there is one."""
        state = stage.load_state(self._file)
        if state is None:
            return False
        self.steps = state["steps"]
        self.networks.load_state_dict(state["networks"])
        self._optimizers.restore(state)
        return True


def draw_batch(examples: Examples, step: int, size: int) -> list[Example]:
    """The examples of a step: the same for the same step, so that the step is all that resuming needs.

    Half of the batches are whole clips, where structure is learnt; the others crops. Both hold as many frames.
    """
    random = np.random.default_rng([7, step])
    if random.random() < 0.5:
        return [examples.draw(random, CLIP_FRAMES) for _ in range(max(1, size * CROP_FRAMES // CLIP_FRAMES))]
    return [examples.draw(random, CROP_FRAMES) for _ in range(size)]


class Report:
    """Prints how the training goes."""

    def __init__(self, session: stage.Session) -> None:
        self._session = session
        self._losses: list[torch.Tensor] = []
        self._times: list[torch.Tensor] = []
        self._since = time.monotonic()

    def add(self, losses: torch.Tensor, times: torch.Tensor) -> None:
        self._losses.append(losses)
        self._times.append(times)

    def line(self, steps: int, rate: float) -> None:
        losses = torch.cat(self._losses)
        level = (torch.cat(self._times) * 5).long().clamp(0, 4)
        by_level = [losses[level == index].mean().item() for index in range(5)]
        speed = len(self._losses) / (time.monotonic() - self._since)
        print(
            f"step {steps}  loss {losses.mean():.4f}  {speed:.2f} steps/s  rate {rate:.2f}"
            f"  {max(0.0, self._session.left_s) / 60:.1f} min left  by t fifths {_numbers(by_level)}",
            flush=True,
        )
        self._losses = []
        self._times = []
        self._since = time.monotonic()


class Validation:
    """The loss on held-out clips: always the same clips, texts and noise, for several noise levels."""

    def __init__(self, material: Material, networks: Networks, tokenizer: Any) -> None:
        examples = Examples(
            material.clips, material.texts, shares={"text2music": 1.0}, reference_frames=networks.heard_frames
        )
        random = np.random.default_rng(0)
        first = len(material.clips.facts) - HELD_OUT
        clips = range(first, first + VALIDATION_CLIPS)
        drawn = [examples.of(clip, "text2music", random, CLIP_FRAMES) for clip in clips]
        self._batch = Batch.of(drawn, networks, tokenizer)

    def line(self, networks: Networks) -> None:
        # The layers are compiled for training only: compiling them for this too would take longer than it saves.
        with torch.compiler.set_stance("force_eager"):
            losses = validation_losses(networks, self._batch, VALIDATION_TIMES)
        levels = " ".join(f"{level:g}" for level in VALIDATION_TIMES)
        print(f"    held-out loss at t {levels}: {_numbers(losses)}", flush=True)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


@dataclass(frozen=True)
class Plan:
    """What to train, from what and how fast.

    `checkpoint`: the saved pipeline that gives the tokenizer, the shapes and, unless `from_scratch`, the first weights.
    `batch`: the crops in a batch. `rate` scales the learning rates.
    `guidance`: the scale that the networks learn; None is the variant's.
    """

    variant: str
    work: Path
    checkpoint: Path
    from_scratch: bool = False
    batch: int = 16
    rate: float = 1.0
    guidance: float | None = None
    compiled: bool = True


def prepare(plan: Plan) -> Training:
    """The training to go on with.

    It goes on from its own state; else base starts from turbo's averaged weights; else from the checkpoint.
    """
    networks = Networks.untrained(plan.checkpoint) if plan.from_scratch else Networks.load(plan.checkpoint)
    file = state_file(plan.work, plan.variant)
    turbo = state_file(plan.work, "turbo")
    if plan.variant == "base" and not file.exists() and turbo.exists():
        networks = averaged(networks, turbo)
    guidance = GUIDANCE[plan.variant] if plan.guidance is None else plan.guidance
    training = Training(networks, file, guidance)
    if training.resume():
        print(f"going on from step {training.steps} of {file}", flush=True)
    return training


def averaged(networks: Networks, file: Path) -> Networks:
    """`networks` with the averaged weights of a training's saved state.

    Raises FileNotFoundError if there is no such state.
    """
    state = stage.load_state(file)
    if state is None:
        raise FileNotFoundError(f"{file} is missing: train `transformer` first")
    prefix = "module."
    weights = {name.removeprefix(prefix): value for name, value in state["average"].items() if name.startswith(prefix)}
    networks.load_state_dict(weights)
    return networks


def train(plan: Plan, material: Material, session: stage.Session) -> int:
    """Trains for the session's time and saves the state; returns the step that it reached."""
    training = prepare(plan)
    networks = training.networks
    tokenizer = load_tokenizer(plan.checkpoint)
    if material.code is None:
        print("no audio codes yet, so no covers: train `codes` first, then go on", flush=True)
    examples = Examples(
        material.clips,
        material.texts,
        shares=VARIANTS[plan.variant],
        reference_frames=networks.heard_frames,
        code=material.code,
    )
    validation = Validation(material, networks, tokenizer)
    validation.line(training.average)
    if plan.compiled:
        training.compile()
    report = Report(session)
    first = training.steps
    while session.running:
        rate = plan.rate * rate_at(training.steps - first, session.share)
        batch = Batch.of(draw_batch(examples, training.steps, plan.batch), networks, tokenizer)
        report.add(*training.step(batch, rate))
        session.save_now_and_then(training.save)
        if training.steps % REPORT_EVERY == 0:
            report.line(training.steps, rate)
        if training.steps % VALIDATE_EVERY == 0:
            validation.line(training.average)
    training.save()
    validation.line(training.average)
    print(f"saved step {training.steps}", flush=True)
    return training.steps

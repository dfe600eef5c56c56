"""The training of a variant: text encoder, condition encoder and transformer together.

Base is trained on the data. Turbo is distilled from it: its transformer learns to do in one pass what base does with
guidance in two, with base's encoders, so that both variants share all other parts.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniature import stage
from miniature.batches import CLIP_FRAMES, Batches, Coder, Texts, batch_of
from miniature.conditioning import Networks, load_tokenizer
from miniature.flow import Inputs, distillation_losses, matching_losses, validation_losses
from miniature.graphs import GraphedStep
from miniature.optimizers import Optimizers, rate_at
from miniature.tasks import BASE_SHARES, HELD_OUT, TURBO_SHARES, Clips, Examples
from miniature.tasks import Texts as Words

VARIANTS: Mapping[str, Mapping[str, float]] = {"base": BASE_SHARES, "turbo": TURBO_SHARES}
RATES: Mapping[str, float] = {"base": 1.0, "turbo": 0.15}
"""The fraction of the full learning rates. Turbo starts from base's weights and has a teacher without noise."""
GUIDANCE = 3.0
"""The scale that turbo learns: of 1, 2, 3 and 4 it was best in key and tempo, and as good as 4 elsewhere."""
GPU_BATCH = 128
REPORT_EVERY = 50
VALIDATE_EVERY = 500
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
VALIDATION_CLIPS = 8
TOKENS_MULTIPLE = 128
"""What texts are padded to on a GPU: a CUDA graph is for one shape, and nearly all texts are shorter than this."""


@dataclass(frozen=True)
class Material:
    """What a training learns from. `code` is None until the audio codes are trained; then there are no covers."""

    clips: Clips
    texts: Words
    code: Coder | None


def state_file(work: Path, variant: str) -> Path:
    """Where a variant's training keeps its state."""
    return work / f"transformer-{variant}.pt"


class Training:
    """One variant's training: `step` until the time is over, `save` to go on later from the same step.

    With a teacher, only the transformer learns.
    """

    def __init__(self, networks: Networks, file: Path, teacher: Networks | None = None) -> None:
        self.networks = networks
        self.steps = 0
        self._file = file
        self._teacher = teacher
        if teacher is not None:
            networks.text_encoder.requires_grad_(False)
            networks.condition_encoder.requires_grad_(False)
        self._optimizers = Optimizers(networks)
        self._step = GraphedStep(self._update) if networks.silence.is_cuda else self._updated

    @property
    def average(self) -> Networks:
        average: Any = self._optimizers.average
        networks: Networks = average
        return networks

    def step(self, inputs: Inputs, rate: float) -> Tensor:
        """One step with the full learning rates times `rate`; returns the examples' losses."""
        with self._optimizers.paced(rate, self.steps):
            losses = self._step(inputs)
        self.steps += 1
        return losses.clone()

    def _updated(self, inputs: Sequence[Tensor]) -> Tensor:
        return self._update(*inputs)

    def _update(self, *tensors: Tensor) -> Tensor:
        inputs = Inputs(*tensors)
        if self._teacher is None:
            losses = matching_losses(self.networks, inputs)
        else:
            losses = distillation_losses(self.networks, self._teacher, inputs, GUIDANCE)
        self._optimizers.step(losses.mean())
        return losses.detach()

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


class Report:
    """Prints how the training goes."""

    def __init__(self, session: stage.Session) -> None:
        self._session = session
        self._losses: list[Tensor] = []
        self._times: list[Tensor] = []
        self._since = time.monotonic()

    def add(self, losses: Tensor, times: Tensor) -> None:
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
    """The loss on held-out clips: always the same clips, texts and noise, for several noise levels.

    If the plan aligns lyrics, also how well the heads find the syllables of the held-out clips that are sung.
    """

    def __init__(self, material: Material, networks: Networks, texts: Texts) -> None:
        frames = networks.heard_frames
        examples = Examples(material.clips, material.texts, shares={"text2music": 1.0}, reference_frames=frames)
        random = np.random.default_rng(0)
        first = len(material.clips.facts) - HELD_OUT
        clips = range(first, first + VALIDATION_CLIPS)
        drawn = [examples.of(clip, "text2music", random, CLIP_FRAMES) for clip in clips]
        self._batch = batch_of(drawn, networks.silence.numpy(), frames, texts)

    def line(self, networks: Networks) -> None:
        losses = validation_losses(networks, self._batch.to(networks.silence.device), VALIDATION_TIMES)
        levels = " ".join(f"{level:g}" for level in VALIDATION_TIMES)
        print(f"    held-out loss at t {levels}: {_numbers(losses)}", flush=True)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


@dataclass(frozen=True)
class Plan:
    """What to train, from what and how.

    `checkpoint`: the saved pipeline that gives the tokenizer, the shapes and, unless `from_scratch`, the first weights.
    `batch`: the crops in a batch. `processes`: how many prepare the batches; with none, the training's own does it.
    """

    variant: str
    work: Path
    checkpoint: Path
    from_scratch: bool = False
    batch: int = 16
    device: str = "cpu"
    processes: int = 0


def on_gpu(plan: Plan) -> Plan:
    """The plan for a GPU, which computes a large batch in the time of a small one."""
    processes = max(1, (os.cpu_count() or 2) - 2)
    return replace(plan, device="cuda", batch=GPU_BATCH, processes=processes)


def prepare(plan: Plan) -> Training:
    """The training to go on with, from its own state if there is one.

    Otherwise base starts from the checkpoint, and turbo from base's averaged weights, which also teach it.

    Raises FileNotFoundError for turbo if base has no state.
    """
    networks = Networks.untrained(plan.checkpoint) if plan.from_scratch else Networks.load(plan.checkpoint)
    teacher: Networks | None = None
    if plan.variant == "turbo":
        networks = averaged(networks, state_file(plan.work, "base"))
        teacher = averaged(Networks.load(plan.checkpoint), state_file(plan.work, "base")).to(plan.device)
    training = Training(networks.to(plan.device), state_file(plan.work, plan.variant), teacher)
    if training.resume():
        print(f"going on from step {training.steps} of {state_file(plan.work, plan.variant)}", flush=True)
    return training


def averaged(networks: Networks, file: Path) -> Networks:
    """`networks` with the averaged weights of a training's saved state.

    Raises FileNotFoundError if there is no such state.
    """
    state = stage.load_state(file)
    if state is None:
        variant = file.stem.removeprefix("transformer-")
        raise FileNotFoundError(f"{file} is missing: train `transformer --variant {variant}` first")
    networks.load_state_dict(state["average"])
    return networks


def train(plan: Plan, material: Material, session: stage.Session) -> int:
    """Trains for the session's time and saves the state; returns the step that it reached."""
    device = torch.device(plan.device)
    shapes = Networks.load(plan.checkpoint)
    texts = Texts(load_tokenizer(plan.checkpoint), TOKENS_MULTIPLE if device.type == "cuda" else 1)
    if material.code is None:
        print("no audio codes yet, so no covers: train `codes` first, then go on", flush=True)
    examples = Examples(
        material.clips,
        material.texts,
        shares=VARIANTS[plan.variant],
        reference_frames=shapes.heard_frames,
        covers=material.code is not None,
    )
    validation = Validation(material, shapes, texts)
    # The processes start before CUDA does: a forked process cannot use it, and need not.
    first = saved_step(plan)
    batches = Batches(examples, shapes, texts, plan.batch).endless(first, plan.processes, device)
    training = prepare(plan)
    validation.line(training.average)
    report = Report(session)
    while session.running:
        rate = RATES[plan.variant] * rate_at(training.steps - first, session.share)
        batch = next(batches).to(device).with_covers_coded(material.code)
        inputs = Inputs.drawn(batch, training.steps, scheduled=plan.variant == "turbo")
        report.add(training.step(inputs, rate), inputs.times)
        session.save_now_and_then(training.save)
        if training.steps % REPORT_EVERY == 0:
            report.line(training.steps, rate)
        if training.steps % VALIDATE_EVERY == 0:
            validation.line(training.average)
    training.save()
    validation.line(training.average)
    print(f"saved step {training.steps}", flush=True)
    return training.steps


def saved_step(plan: Plan) -> int:
    """The step at which a variant's training goes on."""
    state = stage.load_state(state_file(plan.work, plan.variant))
    return 0 if state is None else int(state["steps"])

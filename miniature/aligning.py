"""Teaches heads of turbo where the lyrics are sung, and nothing else: it keeps playing as it did.

Turbo's lyric encoder learns first, alone (`miniature.spelling`), then with its transformer. Half of a batch are sung clips with a
little noise, whose syllables the heads are to find; the others are examples of all of turbo's tasks, at the noise levels of its
schedule. The velocities of all of them are to stay those of turbo as it was. Base is left alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from miniature import loop, stage
from miniature.batches import CROP_FRAMES, Batch, Coder, Texts, batch_of
from miniature.conditioning import LYRICS_TOKENS, Networks, Tokens, load_tokenizer
from miniature.flow import Inputs, draw_scheduled_times, fast
from miniature.lyric_heads import HEADS, TimingCheck, alignment_loss, attention_read
from miniature.sounds import SoundProbe, frame_sounds, token_sounds
from miniature.spelling import teach as teach_spelling
from miniature.tasks import HELD_OUT, TURBO_SHARES, Clips, Example, Examples
from miniature.tasks import Texts as Words
from serve_app.music import VARIANT_DEFAULTS

SUNG = 4
"""The sung clips of a batch."""
OTHERS = 3
"""The other examples of a batch."""
RATES: Mapping[str, float] = {"transformer": 1e-3, "lyric encoder": 3e-4, "probes": 1e-3}
BETAS = (0.9, 0.97)
GRADIENT_LIMIT = 2.0
AVERAGE_KEPT = 0.99
"""Of the running average of the weights, in each step."""
WEIGHTS: Mapping[str, float] = {"playing": 30.0, "attention": 1.0, "tokens": 0.5, "frames": 1.0}
"""Of the losses. That of playing is a hundred times as small as the others."""
SUNG_TASKS = ("text2music", "repaint")
HIGHEST_SUNG = 0.25
"""The highest noise level of a sung clip: the voice is heard up to it."""
ALIGNED_AT = 1 / VARIANT_DEFAULTS["turbo"].steps
"""The noise level at which Sophia looks for the lyrics of turbo's songs."""
CHECK_EVERY = 100
PROBED = (1, 2, 3)
"""The layers whose states are asked for the sounds."""


class Lesson(NamedTuple):
    """A training step's inputs, of which the first examples are sung, and their sounds.

    `frames` (sung, frames, 6) and `tokens` (sung, tokens, 6) are what `miniature.sounds` gives.
    """

    inputs: Inputs
    frames: Tensor
    tokens: Tensor


class Pupil(nn.Module):
    """Turbo's networks, and the probes that ask what its frames and tokens know of the syllables."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks
        networks.requires_grad_(False)
        networks.transformer.requires_grad_(True)
        networks.condition_encoder.lyric_encoder.requires_grad_(True)
        config = networks.transformer.config
        self.token_probe = SoundProbe(config.encoder_hidden_size)
        self.frame_probes = nn.ModuleList(SoundProbe(config.hidden_size) for _ in PROBED)

    def groups(self) -> list[dict[str, Any]]:
        """What learns, for an optimizer."""
        encoder = self.networks.condition_encoder.lyric_encoder
        probes = [*self.token_probe.parameters(), *self.frame_probes.parameters()]
        return [
            {"name": "transformer", "params": self.networks.transformer.parameters()},
            {"name": "lyric encoder", "params": encoder.parameters()},
            {"name": "probes", "params": probes},
        ]


class Training:
    """The training of the heads: `step` until the time is over, `save` to go on later from the same step."""

    def __init__(self, pupil: Pupil, teacher: Networks, file: Path) -> None:
        self.pupil = pupil
        self.steps = 0
        self._file = file
        self._teacher = teacher.requires_grad_(False)
        self._optimizer = torch.optim.AdamW(pupil.groups(), betas=BETAS, weight_decay=0.0)
        kept: Any = get_ema_multi_avg_fn(AVERAGE_KEPT)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(pupil, multi_avg_fn=kept)

    @property
    def average(self) -> Networks:
        """Turbo's networks with averaged weights."""
        average: Any = self._average.module
        networks: Networks = average.networks
        return networks

    def step(self, lesson: Lesson, rate: float) -> Mapping[str, float]:
        """One step, with the full learning rates times `rate`; returns the losses."""
        losses = self._losses(lesson)
        for group in self._optimizer.param_groups:
            group["lr"] = RATES[group["name"]] * rate
        self._optimizer.zero_grad()
        torch.autograd.backward(torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum())
        nn.utils.clip_grad_norm_(self.pupil.parameters(), GRADIENT_LIMIT)
        self._optimizer.step()
        self._average.update_parameters(self.pupil)
        self.steps += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _losses(self, lesson: Lesson) -> Mapping[str, Tensor]:
        inputs = lesson.inputs
        with torch.no_grad(), fast(inputs.music.device):
            conditions = inputs.conditions(self._teacher)
            wanted = self._teacher.velocity(inputs.noisy, inputs.times, conditions, inputs.context)
        velocity, losses = self._heard(lesson)
        return {"playing": (velocity - wanted).square().mean(), **losses}

    def _heard(self, lesson: Lesson) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The velocity, and how well the syllables are found and told."""
        inputs = lesson.inputs
        networks = self.pupil.networks
        sung = len(lesson.frames)
        with (
            fast(inputs.music.device),
            attention_read(networks.transformer, HEADS) as read,
            states_read(networks.transformer) as heard,
        ):
            conditions = inputs.conditions(networks)
            velocity = networks.velocity(inputs.noisy, inputs.times, conditions, inputs.context)
        patch = inputs.music.shape[1] // heard[0].shape[1]
        frames = lesson.frames[:, ::patch]
        probed = zip(self.pupil.frame_probes, heard, strict=True)
        of_frames = torch.stack([probe.loss(states[:sung].float(), frames) for probe, states in probed])  # type: ignore[operator]
        words = conditions[0][:sung, : lesson.tokens.shape[1]].float()
        return velocity, {
            "attention": alignment_loss([each[:sung] for each in read], inputs.sung[:sung]),
            "tokens": self.pupil.token_probe.loss(words, lesson.tokens),
            "frames": of_frames.mean(),
        }

    def save(self) -> None:
        """Writes all that the training needs to go on from here."""
        state = {
            "pupil": self.pupil.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.state_dict(),
            "steps": self.steps,
        }
        stage.save_state(state, self._file)

    def resume(self) -> bool:
        """Goes on from the saved state, if there is one."""
        state = stage.load_state(self._file)
        if state is None:
            return False
        self.pupil.load_state_dict(state["pupil"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average.load_state_dict(state["average"])
        self.steps = state["steps"]
        return True


@contextmanager
def states_read(transformer: Any) -> Iterator[list[Tensor]]:
    """Inside the block, a pass of the transformer appends the frames' states that the cross-attention of PROBED layers reads."""
    read: list[Tensor] = []

    def hook(_attention: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        read.append(arguments[0] if arguments else named["hidden_states"])

    hooks = [transformer.layers[layer].cross_attn.register_forward_pre_hook(hook, with_kwargs=True) for layer in PROBED]
    try:
        yield read
    finally:
        for each in hooks:
            each.remove()


@dataclass(frozen=True)
class Lessons:
    """What is learnt from: the lesson of a step is always the same."""

    examples: Examples
    networks: Networks
    texts: Texts
    code: Coder | None

    @classmethod
    def of(cls, checkpoint: Path, material: "Material") -> "Lessons":
        """The lessons that a checkpoint's turbo gets."""
        networks = Networks.load(checkpoint)
        examples = Examples(
            material.clips,
            material.texts,
            shares=TURBO_SHARES,
            reference_frames=networks.heard_frames,
            covers=material.code is not None,
        )
        return cls(examples, networks, Texts(load_tokenizer(checkpoint)), material.code)

    def check(self, clips: Clips) -> TimingCheck:
        """The check with the held-out clips."""
        random = np.random.default_rng(0)
        first = len(clips.facts) - HELD_OUT
        sung = [clip for clip in range(first, len(clips.facts)) if clips.facts[clip].voice]
        return TimingCheck([self.examples.sung(clip, random) for clip in sung], self.networks, self.texts)

    def lesson(self, step: int) -> Lesson:
        """The lesson of a step."""
        random = np.random.default_rng([19, step])
        tasks = random.choice(SUNG_TASKS, SUNG)
        sung = [self.examples.draw_sung(random, CROP_FRAMES, str(task)) for task in tasks]
        others = [self.examples.draw(random, CROP_FRAMES) for _ in range(OTHERS)]
        batch = batch_of([*sung, *others], self.networks.silence.numpy(), self.networks.heard_frames, self.texts)
        batch = batch.with_covers_coded(self.code)
        frames = [frame_sounds(each.lyrics, each.syllables, len(each.target)) for each in sung]
        return Lesson(_drawn(batch, step), torch.from_numpy(np.stack(frames)), self._token_sounds(sung))

    def _token_sounds(self, sung: Sequence[Example]) -> Tensor:
        lyrics = Tokens(self.texts.tokenizer, [each.lyrics for each in sung], LYRICS_TOKENS, self.texts.multiple)
        sounds = [
            token_sounds(each.lyrics, each.syllables, offsets)
            for each, offsets in zip(sung, lyrics.offsets, strict=True)
        ]
        return torch.from_numpy(np.stack(sounds))


def _drawn(batch: Batch, step: int) -> Inputs:
    generator = torch.Generator().manual_seed(step)
    size = len(batch.music)
    noise = torch.randn(batch.music.shape, generator=generator)
    low = HIGHEST_SUNG * torch.rand(SUNG, generator=generator)
    times = torch.cat([low, draw_scheduled_times(size - SUNG, generator)])
    return Inputs.of(batch, noise=noise, times=times, dropped=torch.zeros(size, dtype=torch.bool))


def state_file(work: Path) -> Path:
    """Where the training's state is in the folder of all stages' states."""
    return work / "aligned.pt"


def trained(work: Path, checkpoint: Path) -> Networks | None:
    """Turbo's networks with the averaged weights of their training, or None if it has no state."""
    file = state_file(work)
    if not file.exists():
        return None
    networks = Networks.load(checkpoint)
    training = Training(Pupil(networks), networks, file)
    training.resume()
    return training.average


@dataclass(frozen=True)
class Material:
    """What the heads learn from. Without `code` there are no covers."""

    clips: Clips
    texts: Words
    code: Coder | None


def prepare(work: Path, checkpoint: Path, material: Material) -> Training:
    """The training to go on with, from its own state if there is one; else from the turbo of `checkpoint`."""
    file = state_file(work)
    pupil = Pupil(Networks.load(checkpoint))
    if not file.exists():
        clips = material.clips.facts
        sung = [facts for facts in clips[: len(clips) - HELD_OUT] if facts.voice]
        teach_spelling(pupil.networks, pupil.token_probe, sung, material.texts, load_tokenizer(checkpoint))
    training = Training(pupil, Networks.load(checkpoint), file)
    if training.resume():
        print(f"going on from step {training.steps} of {file}", flush=True)
    return training


def train(work: Path, checkpoint: Path, material: Material, session: stage.Session) -> int:
    """Trains for the session's time; saves the state and returns the step reached."""
    training = prepare(work, checkpoint, material)
    lessons = Lessons.of(checkpoint, material)
    check = lessons.check(material.clips)

    def step(rate: float) -> Mapping[str, float]:
        losses = training.step(lessons.lesson(training.steps), rate)
        if training.steps % CHECK_EVERY == 0:
            print_check(check, training.average)
        return losses

    loop.run(training, step, session)
    print_check(check, training.average)
    return training.steps


def print_check(check: TimingCheck, networks: Networks) -> None:
    """Prints how well the heads find the syllables of held-out clips, all together and by layer."""
    print(f"    held-out syllables: {check.timing(networks, ALIGNED_AT, HEADS)}", flush=True)
    for layer, heads in HEADS.items():
        print(f"    layer {layer}: {check.timing(networks, ALIGNED_AT, {layer: heads})}", flush=True)

"""Trains the autoencoder. Encoder and decoder learn apart: both go by the latents that miniature.latents analyses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from miniature import loop, stage
from miniature.autoencoder import Clip, Networks, round_trip
from miniature.dataset import Dataset, render
from miniature.encoder import LATENTS, STRIDES
from miniature.latents import SAMPLES
from miniature.mixing import LINEAR
from miniature.spectra import decoder_loss
from miniature.tasks import HELD_OUT

PARTS = ("encoder", "decoder")
RATES = {"encoder": 2e-3, "decoder": 1e-3}
BETAS = {"encoder": (0.9, 0.999), "decoder": (0.8, 0.98)}
GRADIENT_LIMITS = {"encoder": 1.0, "decoder": 5.0}
AVERAGE_KEPT = 0.99  # by each step
ENCODER_BATCH = 16
DECODER_BATCHES = {"cpu": 4, "cuda": 16}
CROP_FRAMES = 48
ENCODER_MARGIN = 8  # frames at a crop's edges that hear what lies outside
DECODER_MARGIN = 4
LATENT_NOISE = 0.15
"""The decoder learns from latents with up to so much noise: those that it will get are a transformer's."""
FIRST_CLIPS = 8
POOLED_CLIPS = 64
STEPS_PER_CLIP = 4
TRIED_CLIPS = 12  # of the held-out ones, for the figures of a round trip

Render = Callable[[int], np.ndarray]
"""The number of a clip → its audio, (2, samples)."""


class Pool:
    """Clips to draw crops from: rendering one for each crop would take longer than the training."""

    def __init__(self, render: Render, networks: Networks, clips: int, position: int) -> None:
        self._render = render
        self._networks = networks
        self._count = clips
        self._clips: list[Clip] = []
        self.position = position
        while len(self._clips) < min(FIRST_CLIPS, clips):
            self.go_on()

    def go_on(self) -> None:
        """Takes the next clip in, and the oldest out if there are enough."""
        self._clips.append(Clip.of(self._render(self.position % self._count), self._networks))
        self._clips = self._clips[-POOLED_CLIPS:]
        self.position += 1

    def draw(self, random: np.random.Generator) -> "Crops":
        cuts = []
        for index in random.integers(len(self._clips), size=ENCODER_BATCH):
            clip = self._clips[index]
            start = int(random.integers(clip.latents.shape[1] - CROP_FRAMES + 1))
            cuts.append((clip, start))
        return Crops(
            _cut([clip.audio for clip, _ in cuts], [start for _, start in cuts], SAMPLES),
            _cut([clip.latents for clip, _ in cuts], [start for _, start in cuts], 1),
            _cut([clip.analysed for clip, _ in cuts], [start for _, start in cuts], STRIDES[-1]),
        )


@dataclass(frozen=True)
class Crops:
    """A batch: the same crops of each tensor of the clips."""

    audio: Tensor
    latents: Tensor
    analysed: Tensor


def _cut(tensors: Sequence[Tensor], starts: Sequence[int], rate: int) -> Tensor:
    """A batch of crops, of tensors with `rate` values a frame."""
    return torch.stack(
        [tensor[:, start * rate : (start + CROP_FRAMES) * rate] for tensor, start in zip(tensors, starts, strict=True)]
    )


class Training:
    """The networks, their optimizers and average, and where in the data they are. Only `parts` learn."""

    def __init__(
        self, file: Path, start: Networks | None = None, device: str = "cpu", parts: Sequence[str] = PARTS
    ) -> None:
        self._file = file
        self._parts = parts
        self._device = torch.device(device)
        self._decoder_batch = DECODER_BATCHES[device]
        self.networks = (start or Networks()).to(self._device)
        self._average = {name: value.clone() for name, value in self.networks.state_dict().items()}
        self._learning: dict[str, list[nn.Parameter]] = {
            "decoder": list(self.networks.decoder.parameters()),
            "encoder": self.networks.encoder.learn(),
        }
        self._optimizers = {
            name: torch.optim.AdamW(parameters, RATES[name], betas=BETAS[name], weight_decay=0.0)
            for name, parameters in self._learning.items()
        }
        self.steps = 0
        self.position = 0

    @property
    def average(self) -> Networks:
        """Networks with the averaged weights."""
        networks = self.networks.copy()
        networks.load_state_dict(self._average)
        return networks

    def resume(self) -> bool:
        """Goes on from the saved state, if there is one."""
        state = stage.load_state(self._file)
        if state is None:
            return False
        self.networks.load_state_dict(state["networks"])
        self._average = {name: value.to(self._device) for name, value in state["average"].items()}
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])
        self.steps = state["steps"]
        self.position = state["position"]
        return True

    def save(self) -> None:
        state = {
            "networks": self.networks.state_dict(),
            "average": self._average,
            **{name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "steps": self.steps,
            "position": self.position,
        }
        stage.save_state(state, self._file)

    def step(self, crops: Crops, random: np.random.Generator, rate: float) -> Mapping[str, float]:
        """One step of each part that learns, with the full learning rates times `rate`; returns the losses."""
        losses = {}
        if "decoder" in self._parts:
            losses["decoder"] = self._decoder_loss(crops, random)
        if "encoder" in self._parts:
            losses["encoder"] = self.encoder_loss(crops)
        for name, loss in losses.items():
            optimizer = self._optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = RATES[name] * rate
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self._learning[name], GRADIENT_LIMITS[name])
            optimizer.step()
        for name, value in self.networks.state_dict().items():
            self._average[name].lerp_(value, 1 - AVERAGE_KEPT)
        self.steps += 1
        return {f"{name}'s loss": float(loss.detach()) for name, loss in losses.items()}

    def encoder_loss(self, crops: Crops) -> Tensor:
        """The mean squared error of the energies' latents; the others are exact."""
        encoded = self.networks.encoder.encode(crops.analysed)[:, LINEAR:LATENTS]
        error = encoded - crops.latents[:, LINEAR:]
        loss: Tensor = error[..., ENCODER_MARGIN:-ENCODER_MARGIN].square().mean()
        return loss

    def _decoder_loss(self, crops: Crops, random: np.random.Generator) -> Tensor:
        latents = crops.latents[: self._decoder_batch]
        noise = torch.from_numpy(random.standard_normal(latents.shape).astype(np.float32))
        amount = torch.from_numpy(random.random((len(latents), 1, 1)).astype(np.float32)) * LATENT_NOISE
        played = self.networks.decoder(latents + (amount * noise).to(self._device))
        kept = slice(DECODER_MARGIN * SAMPLES, -DECODER_MARGIN * SAMPLES)
        return decoder_loss(played[..., kept], crops.audio[: self._decoder_batch, :, kept])


@dataclass(frozen=True)
class Data:
    """Clips for training, numbered from 0, and held-out audio, each (2, samples)."""

    render: Render
    clips: int
    held_out: Sequence[np.ndarray]

    @classmethod
    def of(cls, clips: Dataset) -> "Data":
        """The audio of a data set."""
        count = len(clips.facts) - HELD_OUT
        held_out = [render(clips.clip(count + number)) for number in range(TRIED_CLIPS)]
        return cls(lambda number: render(clips.clip(number)), count, held_out)


def state_file(work: Path) -> Path:
    """Where the training's state is in the folder of all stages' states."""
    return work / "vae.pt"


def train(
    work: Path,
    data: Data,
    session: stage.Session,
    checkpoint: Path | None = None,
    *,
    device: str = "cpu",
    parts: Sequence[str] = PARTS,
) -> int:
    """Trains `parts` for the session's time; saves the state and returns the step reached.

    It goes on from a saved state; else from the autoencoder of the pipeline in `checkpoint`; else anew.
    """
    training = Training(state_file(work), Networks.load(checkpoint) if checkpoint else None, device, parts)
    if training.resume():
        print(f"going on from step {training.steps} of {state_file(work)}", flush=True)
    pool = Pool(data.render, training.networks, data.clips, training.position)

    def step(rate: float) -> Mapping[str, float]:
        random = np.random.default_rng([11, training.steps])
        losses = training.step(pool.draw(random), random, rate)
        if training.steps % STEPS_PER_CLIP == 0:
            pool.go_on()
        training.position = pool.position
        return losses

    loop.run(training, step, session)
    print(round_trip(training.average, data.held_out).line(), flush=True)
    return training.steps


def trained(work: Path) -> Networks | None:
    """The autoencoder's networks with the averaged weights of their training, or None if it has no state."""
    state = stage.load_state(state_file(work))
    if state is None:
        return None
    networks = Networks()
    networks.load_state_dict(state["average"])
    return networks

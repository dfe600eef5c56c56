"""Flow matching: what the transformer is asked to predict, and how far from it its prediction is.

x_t = (1 - t) music + t noise; the transformer predicts the velocity noise - music, as ACE-Step's does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from miniature.batches import Batch
from miniature.conditioning import Networks

SHIFT = 3.0  # turbo's schedule spends its steps at high noise, where key, tempo and structure are decided
UNIFORM_SHARE = 0.3
TURBO_STEPS = 8
DROPPED_SHARE = 0.12  # conditions replaced by the null embedding, which guidance needs


class Inputs(NamedTuple):
    """All tensors of a training step: a batch and what is drawn for it.

    `times`: noise levels (batch,). `dropped`: (batch,), true where the null embedding replaces the conditions. `sung`: as in Batch.
    """

    music: Tensor
    context: Tensor
    references: Tensor
    prompts: Tensor
    prompts_mask: Tensor
    lyrics: Tensor
    lyrics_mask: Tensor
    sung: Tensor
    noise: Tensor
    times: Tensor
    dropped: Tensor

    @classmethod
    def drawn(cls, batch: Batch, step: int, *, scheduled: bool = False) -> "Inputs":
        """The inputs with a batch's noise, always the same for a step on the same kind of device.

        `scheduled`: most noise levels are those of turbo's schedule.
        """
        device = batch.music.device
        generator = torch.Generator(device).manual_seed(step)
        size = len(batch.music)
        noise = torch.randn(batch.music.shape, generator=generator, device=device)
        times = draw_scheduled_times(size, generator) if scheduled else draw_times(size, generator)
        dropped = torch.rand(size, generator=generator, device=device) < DROPPED_SHARE
        return cls.of(batch, noise=noise, times=times, dropped=dropped)

    @classmethod
    def of(cls, batch: Batch, *, noise: Tensor, times: Tensor, dropped: Tensor) -> "Inputs":
        return cls(
            music=batch.music,
            context=batch.context,
            references=batch.references,
            prompts=batch.prompts,
            prompts_mask=batch.prompts_mask,
            lyrics=batch.lyrics,
            lyrics_mask=batch.lyrics_mask,
            sung=batch.sung,
            noise=noise,
            times=times,
            dropped=dropped,
        )

    @property
    def noisy(self) -> Tensor:
        level = self.times[:, None, None]
        return (1 - level) * self.music + level * self.noise

    @property
    def velocity(self) -> Tensor:
        return self.noise - self.music

    def conditions(self, networks: Networks) -> tuple[Tensor, Tensor]:
        """The conditions of the texts and references, with none dropped."""
        return networks.conditions(self.prompts, self.prompts_mask, self.lyrics, self.lyrics_mask, self.references)


def draw_times(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels (batch,): logit-normal with turbo's shift, and a share of uniform ones so that no level is rare."""
    device = generator.device
    plain = torch.sigmoid(torch.randn(batch, generator=generator, device=device))
    shifted = SHIFT * plain / (1 + (SHIFT - 1) * plain)
    uniform = torch.rand(batch, generator=generator, device=device)
    return torch.where(torch.rand(batch, generator=generator, device=device) < UNIFORM_SHARE, uniform, shifted)


def draw_scheduled_times(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels (batch,): those at which turbo predicts, and a share of others. The first is pure noise, which is else rare."""
    device = generator.device
    plain = 1 - torch.randint(TURBO_STEPS, (batch,), generator=generator, device=device) / TURBO_STEPS
    scheduled = SHIFT * plain / (1 + (SHIFT - 1) * plain)
    others = draw_times(batch, generator)
    return torch.where(torch.rand(batch, generator=generator, device=device) < UNIFORM_SHARE, others, scheduled)


def matching_losses(networks: Networks, inputs: Inputs) -> Tensor:
    """The squared error of each example's velocity: (batch,)."""
    with fast(inputs.music.device):
        states, mask = inputs.conditions(networks)
        null = networks.condition_encoder.null_condition_emb
        states = torch.where(inputs.dropped[:, None, None], null, states)
        predicted = networks.velocity(inputs.noisy, inputs.times, (states, mask), inputs.context)
    return _squared_error(predicted, inputs.velocity)


def distillation_losses(networks: Networks, teacher: Networks, inputs: Inputs, guidance: float) -> Tensor:
    """How far each example's velocity is from the teacher's guided one: (batch,).

    Guidance takes two passes, and a student that has learnt their sum takes one: Meng et al., "On Distillation of Guided
    Diffusion Models" (2023), with one fixed scale.
    """
    noisy = inputs.noisy
    with fast(inputs.music.device):
        with torch.no_grad():
            conditions = inputs.conditions(teacher)
            conditional = teacher.velocity(noisy, inputs.times, conditions, inputs.context)
            null = teacher.null_conditions(len(noisy))
            unconditional = teacher.velocity(noisy, inputs.times, null, inputs.context)
            guided = unconditional + guidance * (conditional - unconditional)
        predicted = networks.velocity(noisy, inputs.times, conditions, inputs.context)
    return _squared_error(predicted, guided)


@torch.no_grad()
def validation_losses(networks: Networks, batch: Batch, levels: Sequence[float]) -> list[float]:
    """The mean squared error of the unguided velocities at each noise level, always with the same noise."""
    device = batch.music.device
    noise = torch.randn(batch.music.shape, generator=torch.Generator().manual_seed(0)).to(device)
    kept = torch.zeros(len(batch.music), dtype=torch.bool, device=device)
    losses = []
    for level in levels:
        times = torch.full((len(batch.music),), level, device=device)
        inputs = Inputs.of(batch, noise=noise, times=times, dropped=kept)
        losses.append(matching_losses(networks, inputs).mean().item())
    return losses


def _squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted - target).square().mean((1, 2))


@contextmanager
def fast(device: torch.device) -> Iterator[None]:
    """bfloat16 where it is safe, and plain attention: at these sizes it takes less time than the fused kernel."""
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield

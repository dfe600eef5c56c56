"""Flow matching: what the transformer is asked to predict, and how far from it its prediction is.

x_t = (1 - t) music + t noise; the transformer predicts the velocity noise - music, as ACE-Step's does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from miniature.conditioning import LYRICS_TOKENS, PROMPT_TOKENS, Networks, Tokens
from miniature.tasks import Example

SHIFT = 3.0  # turbo's schedule spends its steps at high noise, where key, tempo and structure are decided
UNIFORM_SHARE = 0.3
DROPPED_SHARE = 0.12  # conditions replaced by the null embedding, which guidance needs


@dataclass(frozen=True)
class Batch:
    """A batch of examples as tensors; latents and context are (batch, frames, channels)."""

    music: Tensor
    context: Tensor
    references: Tensor
    prompts: Tokens
    lyrics: Tokens

    @classmethod
    def of(cls, examples: Sequence[Example], networks: Networks, tokenizer: Any) -> "Batch":
        frames = networks.heard_frames
        silence = networks.silence.numpy()[None].repeat(frames, 0)
        masks = np.stack([np.repeat(example.mask[:, None], 64, 1) for example in examples])
        sources = np.stack([example.source for example in examples])
        references = [silence if example.reference is None else example.reference[:frames] for example in examples]
        return cls(
            music=torch.from_numpy(np.stack([example.target for example in examples])),
            context=torch.from_numpy(np.concatenate([sources, masks], -1).astype(np.float32)),
            references=torch.from_numpy(np.stack(references).astype(np.float32)),
            prompts=Tokens(tokenizer, [example.prompt for example in examples], PROMPT_TOKENS),
            lyrics=Tokens(tokenizer, [example.lyrics for example in examples], LYRICS_TOKENS),
        )


def draw_times(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels (batch,): logit-normal with turbo's shift, and a share of uniform ones so that no level is rare."""
    plain = torch.sigmoid(torch.randn(batch, generator=generator))
    shifted = SHIFT * plain / (1 + (SHIFT - 1) * plain)
    uniform = torch.rand(batch, generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < UNIFORM_SHARE, uniform, shifted)


def training_losses(
    networks: Networks, average: Networks, batch: Batch, *, guidance: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The squared error of each example's velocity (batch,), and the noise levels that were drawn.

    With `guidance` w above 1 the networks learn the guided velocity itself, so that turbo plays in one pass what
    guidance needs two for. Tang et al., "Diffusion Models without Classifier-free Guidance" (2025): the target is
    velocity + (1 - 1/w) (conditional - unconditional), both predicted, the latter by the average's networks;
    where conditional predictions meet it, they equal unconditional + w (unguided - unconditional).
    """
    size = len(batch.music)
    times = draw_times(size, generator)
    noise = torch.randn(batch.music.shape, generator=generator)
    dropped = torch.rand(size, generator=generator) < DROPPED_SHARE
    noisy = _noisy(batch.music, noise, times)
    target = noise - batch.music
    with _fast():
        states, mask = networks.conditions(batch.prompts, batch.lyrics, batch.references)
        null = networks.condition_encoder.null_condition_emb
        states = torch.where(dropped[:, None, None], null, states)
        predicted = networks.velocity(noisy, times, (states, mask), batch.context)
        if guidance > 1:
            with torch.no_grad():
                unguided = average.velocity(noisy, times, average.null_conditions(size), batch.context)
            push = (1 - 1 / guidance) * (predicted.detach() - unguided)
            target = target + torch.where(dropped[:, None, None], 0.0, push)
    return _squared_error(predicted, target), times


@torch.no_grad()
def validation_losses(networks: Networks, batch: Batch, levels: Sequence[float]) -> list[float]:
    """The mean squared error of the unguided velocities at each noise level, always with the same noise."""
    noise = torch.randn(batch.music.shape, generator=torch.Generator().manual_seed(0))
    losses = []
    with _fast():
        conditions = networks.conditions(batch.prompts, batch.lyrics, batch.references)
        for level in levels:
            times = torch.full((len(batch.music),), level)
            predicted = networks.velocity(_noisy(batch.music, noise, times), times, conditions, batch.context)
            losses.append(_squared_error(predicted, noise - batch.music).mean().item())
    return losses


def _noisy(music: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    level = times[:, None, None]
    return (1 - level) * music + level * noise


def _squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted - target).square().mean((1, 2))


@contextmanager
def _fast() -> Iterator[None]:
    """bfloat16 where it is safe, and plain attention: at these sizes it takes less time than the fused kernel."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield

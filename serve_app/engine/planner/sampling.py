"""Draws tokens from logits, for many songs at once and on the device."""

from collections.abc import Sequence
from math import isnan
from typing import Final

import numpy as np
import torch

from serve_app.engine.planner.protocol import Sampling

_NOTHING: Final = float("-inf")
_LEAST: Final = 1e-20
"""Keeps the noise finite, so that it cannot let in what is not allowed."""


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance of logits [songs, tokens], in float32: u + guidance x (c - u), with one `guidance` a song."""
    return torch.lerp(unconditional.float(), conditional.float(), guidance[:, None])


def draw(
    logits: torch.Tensor,
    widths: Sequence[int],
    sampling: Sequence[Sampling],
    generators: Sequence[torch.Generator],
) -> list[int | None]:
    """Returns the column drawn from each row of `logits`, which is float32 [songs, tokens] with -inf for what is not allowed.

    Row i has the columns up to `widths[i]`; the rest is -inf. Each song has its own way of sampling and its own generator, from
    which it takes as many numbers as it has columns, so that it draws the same alone and in company. As in the original, top-k
    and top-p count before the temperature. The draw is the Gumbel-max trick: small differences of rounding between batches hardly
    ever change its outcome, as they would with a uniform number on a cumulative sum. None stands for a row with NaN.
    """
    logits = _top_k(logits, [way.top_k for way in sampling])
    logits = _top_p(logits, [way.top_p for way in sampling])
    temperatures = torch.tensor([way.temperature for way in sampling], device=logits.device)[:, None]
    noise = torch.zeros_like(logits)
    for row, width, way, generator in zip(noise, widths, sampling, generators, strict=True):
        if way.temperature > 0:
            row[:width].exponential_(generator=generator).clamp_(min=_LEAST).log_().neg_()
    scores = torch.where(temperatures > 0, logits / temperatures.clamp(min=1e-6) + noise, logits)
    best, columns = scores.max(dim=-1)
    pairs = zip(best.tolist(), columns.tolist(), strict=True)
    return [None if isnan(score) else int(column) for score, column in pairs]


def _top_k(logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Keeps the likeliest tokens of each row; 0 keeps all."""
    width = logits.shape[-1]
    kept = [min(count, width) or width for count in counts]
    if min(kept) == width:
        return logits
    most = max(count for count in kept if count < width)
    best = logits.topk(most, dim=-1).values
    last = torch.tensor([min(count, most) - 1 for count in kept], device=logits.device)[:, None]
    limits = torch.tensor([count < width for count in kept], device=logits.device)[:, None]
    return logits.masked_fill(limits & (logits < best.gather(1, last)), _NOTHING)


def _top_p(logits: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    """Keeps the fewest of the likeliest tokens of each row that have at least its share of the probability; 1 keeps all."""
    if min(shares) >= 1:
        return logits
    probabilities = logits.softmax(dim=-1)
    falling = _falling(probabilities)
    wanted = torch.tensor(shares, device=logits.device)[:, None]
    enough = (falling.cumsum(dim=-1) < wanted).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    limits = wanted < 1
    return logits.masked_fill(limits & (probabilities < falling.gather(1, enough)), _NOTHING)


def _falling(values: torch.Tensor) -> torch.Tensor:
    """The values of each row, the largest first. On the CPU, numpy sorts about twenty times as fast as torch."""
    if values.device.type == "cpu":
        return torch.from_numpy(-np.sort(-values.numpy(), axis=-1))
    return values.sort(dim=-1, descending=True).values

"""Makes a checkpoint's transformer smaller to pack, without or nearly without a change of what it plays."""

from typing import Any

import torch
from torch import Tensor, nn

TABLE = "scale_shift_table"
"""What the names of the tables end in that the times' embeddings are added to."""
_FLOAT16_BITS = 10


@torch.no_grad()
def fold_second_time(transformer: Any) -> None:
    """Replaces the embedding of t - r by what it always is: the pipeline calls with r = t.

    Its constant goes into the tables that it is added to, and its weights become zeros, which compress to nothing:
    0.53 million of 6.5.
    """
    embedding, modulation = transformer.time_embed_r(torch.zeros(1))
    transformer.scale_shift_table += embedding[:, None, :]
    for layer in transformer.layers:
        layer.scale_shift_table += modulation
    for parameter in transformer.time_embed_r.parameters():
        parameter.zero_()


@torch.no_grad()
def round_weights(network: nn.Module, bits: int) -> None:
    """Rounds all weights to floats with `bits` bits of mantissa, to nearest; bfloat16 has 7, float16 has 10.

    The tables that `fold_second_time` adds a constant to stay as they are: beside it, their own numbers are small.
    """
    for name, parameter in network.named_parameters():
        if not name.endswith(TABLE):
            parameter.copy_(_rounded(parameter, bits))


def _rounded(values: Tensor, bits: int) -> Tensor:
    if not 1 <= bits <= _FLOAT16_BITS:
        raise ValueError(f"bits: {bits} is not from 1 to {_FLOAT16_BITS}")
    mantissa, exponent = torch.frexp(values)
    scale = float(2 ** (bits + 1))  # frexp's mantissa is from 0.5 to 1: its first bit is the implied one
    return torch.ldexp((mantissa * scale).round() / scale, exponent)

"""The autoencoder's exact start: latents' first 54 numbers from audio and back, without training.

Those numbers are a projection of an MDCT of the mid channel below 1.2 kHz. A basis function of that MDCT is smooth, so it is
known from samples at 3,600 Hz; between those, band-limited interpolation gives its samples at 12,000 Hz, and then at
48,000 Hz. Oobleck's three strides do just that: a frame of 1,920 samples becomes 6 steps of 24 channels (150 steps a second),
each of those 10 steps of 8 channels (1,500 a second), each of those 32 samples. The decoder synthesises with these kernels; the
encoder analyses with the same kernels, since a strided convolution is the adjoint of the transposed one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniature.latents import SAMPLES

MIDDLE_CHANNELS = 24
"""Channels at 150 steps a second: samples of the signal at 3,600 Hz."""
FINE_CHANNELS = 8
"""Channels at 1,500 steps a second: samples of the signal at 12,000 Hz."""
_STRAIGHT = -6.0
"""The logarithm of a snake's alpha that leaves audio as it is: it adds at most (e^-6 x)^2."""

Array = np.ndarray[Any, Any]


def projection() -> Array:
    """The latents' projection of the MDCT's lowest numbers: (96, 54)."""
    with np.load(Path(__file__).with_name("latent_basis.npz")) as basis:
        matrix: Array = basis["P"]
        return matrix


def start_decoder(decoder: Any) -> None:
    """Makes an OobleckDecoder's first channels the exact inverse of the analysis; the others stay free to be trained.

    The pass-through channels must number at least 54, 24, 8 and 1 at 25, 150, 1,500 and 48,000 steps a second.
    """
    first = plain_weight(decoder.conv1)
    width = first.shape[1]
    first[:width] = 0
    first[range(width), range(width), 3] = 1
    set_weight(decoder.conv1, first)
    decoder.conv1.bias.data[:width] = 0
    inverse = np.linalg.pinv(projection())
    coarse = np.einsum("ck,kqt->cqt", inverse, _mdct_kernel()).astype(np.float32)
    kernels = (coarse, middle_kernel(), fine_kernel())
    for block, kernel in zip(decoder.block, kernels, strict=True):
        _start_decoder_block(block, kernel)
    keep_straight(decoder.snake1, 1)
    last = plain_weight(decoder.conv2) * 0.1
    last[:, 0] = 0
    last[:, 0, 3] = 1
    set_weight(decoder.conv2, last)


def _start_decoder_block(block: Any, kernel: Array) -> None:
    inputs, outputs, _ = kernel.shape
    keep_straight(block.snake1, inputs)
    weight = plain_weight(block.conv_t1)
    weight[:, :outputs] = 0
    weight[:inputs] *= 0.3  # what the exact signal adds to the free channels, at first
    weight[:inputs, :outputs] = torch.from_numpy(kernel)
    set_weight(block.conv_t1, weight)
    block.conv_t1.bias.data[:outputs] = 0
    for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
        unit.conv2.weight_g.data *= 0.5
        silence_outputs(unit.conv2, slice(0, outputs))


def coarse_kernel() -> Array:
    """From 24 channels at 150 steps a second to the latents' 54 numbers: (54, 24, 12) for a stride of 6."""
    kernel: Array = np.einsum("kc,kqt->cqt", projection(), _mdct_kernel()).astype(np.float32)
    return kernel


def middle_kernel() -> Array:
    """Interpolates from 3,600 to 12,000 Hz: (24, 8, 20) for a stride of 10; each step is 320 samples."""
    known = _positions(MIDDLE_CHANNELS, 320)
    wanted = np.arange(-5, 15)[:, None] * 32 + _positions(FINE_CHANNELS, 32)
    distance = wanted.T[None] - known[:, None, None]
    return _interpolation(distance, 320 / MIDDLE_CHANNELS, 160.0)


def fine_kernel() -> Array:
    """Interpolates from 12,000 to 48,000 Hz: (8, 1, 64) for a stride of 32."""
    known = _positions(FINE_CHANNELS, 32)
    distance = np.arange(-16, 48)[None, None] - known[:, None, None]
    return _interpolation(distance, 32 / FINE_CHANNELS, 16.0)


def _mdct_kernel() -> Array:
    """The MDCT's basis functions at the positions of the 24 channels, in 12 steps of 320 samples: (96, 24, 12)."""
    sample = np.arange(12)[None] * 320 + _positions(MIDDLE_CHANNELS, 320)[:, None] + 0.5
    window = np.sqrt(2 / SAMPLES) * np.sin(np.pi * sample / (2 * SAMPLES))
    bins = np.arange(len(projection()))[:, None, None] + 0.5
    functions: Array = window * np.cos(np.pi / SAMPLES * (sample + SAMPLES / 2) * bins)
    return functions


def _positions(channels: int, samples: int) -> Array:
    """The evenly spaced positions of the channels' values within a step: (channels,), in samples."""
    return (np.arange(channels) + 0.5) * samples / channels - 0.5


def _interpolation(distance: Array, spacing: float, reach: float) -> Array:
    """A sinc of this spacing under a squared cosine that is zero from `reach` samples on."""
    window = np.where(np.abs(distance) < reach, np.cos(np.pi * distance / (2 * reach)) ** 2, 0)
    return (np.sinc(distance / spacing) * window).astype(np.float32)


def keep_straight(snake: Any, channels: int) -> None:
    """Makes the first channels of a snake activation pass audio unchanged."""
    snake.alpha.data[:, :channels] = _STRAIGHT


def silence_outputs(convolution: Any, outputs: slice) -> None:
    """Makes a convolution's outputs zero, with weights that can still be trained."""
    convolution.weight_g.data[outputs] = 0
    convolution.bias.data[outputs] = 0


def plain_weight(convolution: Any) -> Tensor:
    """The weight of a convolution under weight norm: g v / |v|."""
    direction: Tensor = convolution.weight_v.detach()
    norm = direction.flatten(1).norm(dim=1)[:, None, None]
    weight: Tensor = convolution.weight_g.detach() * direction / norm
    return weight


def set_weight(convolution: Any, weight: Tensor) -> None:
    """Gives a convolution under weight norm this weight. A filter of zeros gets the length 0, and a direction."""
    length = weight.flatten(1).norm(dim=1)
    direction = weight.clone()
    direction[length == 0, 0, 0] = 1
    convolution.weight_v.data.copy_(direction)
    convolution.weight_g.data.copy_(length.view_as(convolution.weight_g))

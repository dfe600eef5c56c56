"""The autoencoder's encoder: an analysis that needs no training, and a few layers that learn logarithms of energies.

A latent's first 54 numbers come from the kernels of mdct_start. The other ten are logarithms of the energies in five bands and
two halves. A band's signal u comes from a pair of filters a quarter wave apart. The mean of sin(a u)^2 over a window is a soft
step in the logarithm of u's energy: near 0 where a u is small, near 1/2 where it is large. Snake activations give such steps for
nine values of a, four decades in all, and the residual units at 150 steps a second learn the logarithms from them.

The encoder is narrower than diffusers' class allows; serve_app/engine/ace_step/narrow_encoder.py says how it is stored.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniature.latents import BAND_EDGES_HZ, SAMPLE_RATE
from miniature.mdct_start import (
    FINE_CHANNELS,
    MIDDLE_CHANNELS,
    Array,
    coarse_kernel,
    fine_kernel,
    keep_straight,
    middle_kernel,
    plain_weight,
    set_weight,
)
from miniature.mixing import LINEAR
from serve_app.engine.ace_step.narrow_encoder import NarrowEncoder

STRIDES = (32, 10, 6)
LATENTS = 64
BANDS = len(BAND_EDGES_HZ) - 1
STEPS = np.geomspace(2.0, 2e4, 9)
"""The values of a."""
_PHASES = slice(FINE_CHANNELS, FINE_CHANNELS + STRIDES[0])
"""The channels at 1,500 steps a second that hold the audio's samples as they are."""
_FIRST_STEP = FINE_CHANNELS + STRIDES[0]
WIDTHS = (1, _FIRST_STEP + 2 * BANDS * len(STEPS), MIDDLE_CHANNELS + BANDS * len(STEPS), LATENTS)
_LINEAR_SHARE = 0.01
"""A snake gives u + sin(a u)^2 / b: b is so small that u does not count."""
_SMALL_DEVIATION = -8.0
"""What softplus makes 0.0003: encoding adds noise 67 dB below the latents."""


class Encoder(NarrowEncoder):
    """The toy model's encoder, in its two parts."""

    def __init__(self) -> None:
        super().__init__(WIDTHS, STRIDES)
        _start(self)

    def analyse(self, audio: Tensor) -> Tensor:
        """What needs no training: audio (batch, 2, samples) → values (batch, WIDTHS[2], 6 * frames)."""
        values: Tensor = self.conv1(audio)
        for block in self.block[:2]:
            values = block(values)
        return values

    def encode(self, values: Tensor) -> Tensor:
        """The trained part: takes the result of `analyse` and returns that of `forward`."""
        encoded: Tensor = self.conv2(self.snake1(self.block[2](values)))
        return encoded

    def learn(self) -> list[nn.Parameter]:
        """Lets training change what needs it, and returns these parameters. The MDCT's way stays as it is."""
        self.requires_grad_(False)
        learnt: Any = self.block[2]
        for unit in (learnt.res_unit1, learnt.res_unit2, learnt.res_unit3):
            unit.requires_grad_(True)
            _keep_outputs(unit.conv2, MIDDLE_CHANNELS)
        learnt.conv1.requires_grad_(True)
        _keep_outputs(learnt.conv1, LINEAR)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


@torch.no_grad()
def encoder_from(weights: Mapping[str, Tensor]) -> Encoder:
    """The encoder whose learnt layers are in `weights`. Its others are exact, not rounded as in a packed checkpoint."""
    encoder = Encoder()
    for name, parameter in encoder.named_parameters():
        if name.startswith("block.2."):
            parameter.copy_(weights[name])
    return encoder


def _start(encoder: Any) -> None:
    mid = torch.zeros(1, 2, 7)
    mid[:, :, 3] = 0.5
    set_weight(encoder.conv1, mid)
    encoder.conv1.bias.data.zero_()
    _start_at_48000(encoder.block[0])
    _start_at_1500(encoder.block[1])
    _start_at_150(encoder.block[2])
    keep_straight(encoder.snake1, LATENTS)
    last = torch.zeros(2 * LATENTS, LATENTS, 3)
    last[range(LATENTS), range(LATENTS), 1] = 1
    set_weight(encoder.conv2, last)
    encoder.conv2.bias.data[:LATENTS] = 0
    encoder.conv2.bias.data[LATENTS:] = _SMALL_DEVIATION


def _start_at_48000(block: Any) -> None:
    """Turns the channel at 48 kHz into two groups at 1,500 steps a second: the signal at 12 kHz, and 32 raw samples a step."""
    for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
        _switch_off(unit)
    keep_straight(block.snake1, 1)
    weight = torch.zeros_like(block.conv1.weight_v)
    weight[:FINE_CHANNELS] = torch.from_numpy(fine_kernel())
    padding = STRIDES[0] // 2
    weight[range(_PHASES.start, _PHASES.stop), 0, range(padding, padding + STRIDES[0])] = 1
    set_weight(block.conv1, weight)
    block.conv1.bias.data.zero_()


def _start_at_1500(block: Any) -> None:
    """The first residual unit adds the bands' signals, once for each step; the snake makes the steps."""
    _start_filters(block.res_unit1)
    _switch_off(block.res_unit2)
    _switch_off(block.res_unit3)
    keep_straight(block.snake1, _FIRST_STEP)
    block.snake1.alpha.data[0, _FIRST_STEP:, 0] = torch.from_numpy(np.log(STEPS)).repeat_interleave(2 * BANDS)
    block.snake1.beta.data[0, _FIRST_STEP:, 0] = np.log(_LINEAR_SHARE)
    weight = torch.zeros_like(block.conv1.weight_v)
    weight[:MIDDLE_CHANNELS, :FINE_CHANNELS] = torch.from_numpy(middle_kernel())
    window = torch.hann_window(weight.shape[2] + 2, periodic=False)[1:-1]
    for output in range(BANDS * len(STEPS)):
        pair = _FIRST_STEP + 2 * output
        # Both sines squared, averaged, are from 0 to 2; training wants values around zero.
        weight[MIDDLE_CHANNELS + output, pair : pair + 2] = 2 * _LINEAR_SHARE * window / window.sum()
    set_weight(block.conv1, weight)
    block.conv1.bias.data[:MIDDLE_CHANNELS] = 0
    block.conv1.bias.data[MIDDLE_CHANNELS:] = -2


def _start_filters(unit: Any) -> None:
    width = WIDTHS[1]
    keep_straight(unit.snake1, width)
    keep_straight(unit.snake2, width)
    filters = torch.zeros_like(unit.conv1.weight_v)
    filters[: 2 * BANDS, _PHASES] = torch.from_numpy(_band_filters())
    set_weight(unit.conv1, filters)
    unit.conv1.bias.data.zero_()
    copies = torch.zeros_like(unit.conv2.weight_v)
    for channel in range(2 * BANDS * len(STEPS)):
        copies[_FIRST_STEP + channel, channel % (2 * BANDS)] = 1
    set_weight(unit.conv2, copies)
    unit.conv2.bias.data.zero_()


def _band_filters() -> Array:
    """A pair of filters a quarter wave apart for each band, over 7 steps of 32 samples: (10, 32, 7)."""
    taps = 7 * STRIDES[0]
    time = (np.arange(taps) - (taps - 1) / 2) / SAMPLE_RATE
    window = np.cos(np.pi * time * SAMPLE_RATE / (taps + 1)) ** 2
    filters = []
    for low, high in pairwise(BAND_EDGES_HZ):
        envelope = 2 * (high - low) / SAMPLE_RATE * np.sinc((high - low) * time) * window
        middle = np.pi * (low + high) * time
        filters += [envelope * np.cos(middle), envelope * np.sin(middle)]
    return np.stack(filters).reshape(2 * BANDS, 7, STRIDES[0]).transpose(0, 2, 1).astype(np.float32)


def _start_at_150(block: Any) -> None:
    """The MDCT's channels go straight to the latents; the others are PyTorch's random start, halved."""
    for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
        unit.conv2.weight_g.data *= 0.5
        unit.conv2.weight_g.data[:MIDDLE_CHANNELS] = 0
        unit.conv2.bias.data[:MIDDLE_CHANNELS] = 0
    keep_straight(block.snake1, MIDDLE_CHANNELS)
    weight = plain_weight(block.conv1)
    weight[:LINEAR] = 0
    weight[:LINEAR, :MIDDLE_CHANNELS] = torch.from_numpy(coarse_kernel())
    set_weight(block.conv1, weight)
    block.conv1.bias.data[:LINEAR] = 0


def _switch_off(unit: Any) -> None:
    """Makes a residual unit add nothing, with weights that pack to nothing."""
    for convolution in (unit.conv1, unit.conv2):
        set_weight(convolution, torch.zeros_like(convolution.weight_v))
        convolution.bias.data.zero_()


def _keep_outputs(convolution: Any, outputs: int) -> None:
    """Keeps training from changing a convolution's first outputs."""

    def masked(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:outputs] = 0
        return gradient

    for parameter in convolution.parameters():
        parameter.register_hook(masked)

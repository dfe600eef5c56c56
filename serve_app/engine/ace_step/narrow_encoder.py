"""NarrowEncoder: an Oobleck encoder whose levels have widths of their own.

diffusers' AutoencoderOobleck gives encoder and decoder the same channel multiples, and its encoder has as many channels at 48 kHz
as it puts out: 128 for 64 latents. The embedded checkpoint needs one channel there. In diffusers' class its encoder would be
gigabytes of zeros, so it is a file of its own, `vae/encoder.safetensors`. The shapes of its tensors give the widths.

This file imports torch and diffusers: import it only after `loading.import_packages`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckEncoderBlock, Snake1d
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import weight_norm

from serve_app.weights.layout import ENCODER_FILE


class NarrowEncoder(nn.Module):
    """An Oobleck encoder with `widths` channels before the first of `strides` and after each; the last is half its output."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], audio_channels: int = 2) -> None:
        super().__init__()
        latents = widths[-1]
        self.conv1 = weight_norm(nn.Conv1d(audio_channels, widths[0], kernel_size=7, padding=3))
        self.block = nn.ModuleList(
            OobleckEncoderBlock(widths[level], widths[level + 1], stride) for level, stride in enumerate(strides)
        )
        self.snake1 = Snake1d(latents)
        self.conv2 = weight_norm(nn.Conv1d(latents, 2 * latents, kernel_size=3, padding=1))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio (batch, channels, samples) → means of the latents (batch, latents, frames), then as many logits of deviations."""
        values = self.conv1(audio)
        for block in self.block:
            values = block(values)
        encoded: torch.Tensor = self.conv2(self.snake1(values))
        return encoded


def use_narrow_encoder(vae: Any, folder: Path) -> None:
    """Gives `vae`, an AutoencoderOobleck, the narrow encoder that its checkpoint in `folder` has, if it has one."""
    file = folder / ENCODER_FILE
    if not file.exists():
        return
    tensors = load_file(file)
    strides = vae.config.downsampling_ratios
    outputs = [tensors[f"block.{level}.conv1.bias"] for level in range(len(strides))]
    widths = [len(bias) for bias in (tensors["conv1.bias"], *outputs)]
    encoder = NarrowEncoder(widths, strides, vae.config.audio_channels)
    encoder.load_state_dict(tensors)
    vae.encoder = encoder.to(vae.device, vae.dtype)

"""The toy model's autoencoder, and what a round trip through it loses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miniature.encoder import LATENTS, STRIDES, Encoder, encoder_from
from miniature.latents import SAMPLE_RATE, analyse
from miniature.mdct_start import start_decoder
from miniature.mixing import LINEAR
from miniature.spectra import log_spectral_distance, low_signal_to_noise
from serve_app.weights.layout import ENCODER_FILE


class Networks(nn.Module):
    """What is trained: the encoder and the decoder."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = Encoder()
            self.decoder: Any = new_autoencoder().decoder
            start_decoder(self.decoder)

    def copy(self) -> "Networks":
        """The same on the CPU: torch's deepcopy refuses modules with weight norm."""
        networks = Networks()
        networks.load_state_dict(self.state_dict())
        return networks

    @classmethod
    def load(cls, checkpoint: Path) -> "Networks":
        """The networks of a saved pipeline's folder; if it has no encoder of its own, that is a new one."""
        networks = cls()
        saved = AutoencoderOobleck.from_pretrained(checkpoint / "vae", dtype=torch.float32)
        networks.decoder.load_state_dict(saved.decoder.state_dict())
        file = checkpoint / ENCODER_FILE
        if file.exists():
            networks.encoder = encoder_from(load_file(file))
        return networks

    def save_encoder(self, checkpoint: Path) -> None:
        """Adds the encoder to a saved pipeline's folder."""
        save_file(self.encoder.state_dict(), checkpoint / ENCODER_FILE)

    def autoencoder(self) -> Any:
        """The decoder in diffusers' class, whose own encoder is an unused one."""
        autoencoder = new_autoencoder()
        autoencoder.decoder.load_state_dict(self.decoder.state_dict())
        return autoencoder.eval()


def new_autoencoder() -> Any:
    """An AutoencoderOobleck with the toy model's decoder, untrained, and the smallest encoder that diffusers allows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderOobleck(
            encoder_hidden_size=2,
            downsampling_ratios=list(STRIDES),
            channel_multiples=[24, 48, 64],
            decoder_channels=4,
            decoder_input_channels=LATENTS,
            audio_channels=2,
            sampling_rate=SAMPLE_RATE,
        )


@dataclass(frozen=True)
class Clip:
    """Audio (2, samples), its latents (64, frames), and what the encoder's fixed part makes of it."""

    audio: Tensor
    latents: Tensor
    analysed: Tensor

    @classmethod
    def of(cls, audio: np.ndarray, networks: Networks) -> "Clip":
        device = next(networks.decoder.parameters()).device
        sound = torch.from_numpy(audio.astype(np.float32)).to(device)
        latents = torch.from_numpy(analyse(audio)).T.to(device)
        with torch.no_grad():
            return cls(sound, latents, networks.encoder.analyse(sound[None])[0])


@dataclass(frozen=True)
class RoundTrip:
    """What is lost on held-out clips, medians over the clips.

    `encoder_error`: the root mean square error of the ten energies' latents and of the 54 others; the latents' standard deviation
    is about 1. Distances in dB for the audio encoded and decoded, and for the decoder alone, from analysed latents.
    """

    encoder_error: float
    linear_error: float
    distance_db: float
    low_snr_db: float
    decoder_distance_db: float
    decoder_low_snr_db: float

    def line(self) -> str:
        return (
            f"held-out clips: encoder's error {self.encoder_error:.3f} for the energies, {self.linear_error:.4f}"
            f" for the others; encoded and decoded: log-spectral distance {self.distance_db:.2f} dB, below 1.2 kHz"
            f" {self.low_snr_db:.2f} dB above the error; decoder alone: {self.decoder_distance_db:.2f} dB,"
            f" {self.decoder_low_snr_db:.2f} dB"
        )


@torch.no_grad()
def round_trip(networks: Networks, clips: Sequence[np.ndarray]) -> RoundTrip:
    """Encodes and decodes held-out clips, each (2, samples)."""
    return RoundTrip(*(float(value) for value in np.median([_one_round_trip(networks, clip) for clip in clips], 0)))


def _one_round_trip(networks: Networks, audio: np.ndarray) -> list[float]:
    clip = Clip.of(audio, networks)
    encoded = networks.encoder.encode(clip.analysed[None])[0, :LATENTS]
    error = encoded - clip.latents
    figures = [float(error[LINEAR:].square().mean().sqrt()), float(error[:LINEAR].square().mean().sqrt())]
    for latents in (encoded, clip.latents):
        played = networks.decoder(latents[None])[0]
        wanted = clip.audio[:, : played.shape[-1]]
        figures += [log_spectral_distance(played, wanted), low_signal_to_noise(played, wanted)]
    return figures

"""The toy model's autoencoder, and what a round trip through it loses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

from miniature.encoder import LATENTS, STRIDES, NarrowEncoder, narrow_from, widen
from miniature.latents import SAMPLE_RATE, analyse
from miniature.mdct_start import start_decoder
from miniature.mixing import LINEAR
from miniature.spectra import log_spectral_distance, low_signal_to_noise


def new_autoencoder() -> Any:
    """An untrained AutoencoderOobleck of the toy model's shape.

    The encoder needs 128 channels at 48 kHz to put out 64 latents, and the same multiples as the decoder then, so most of its
    channels are idle: they carry zeros.
    """
    return AutoencoderOobleck(
        encoder_hidden_size=2 * LATENTS,
        downsampling_ratios=list(STRIDES),
        channel_multiples=[4, 3, 6],
        decoder_channels=12,
        decoder_input_channels=LATENTS,
        audio_channels=2,
        sampling_rate=SAMPLE_RATE,
    )


class Networks(nn.Module):
    """What is trained: the encoder without its idle channels, and the decoder."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = NarrowEncoder()
            self.decoder: Any = new_autoencoder().decoder
            start_decoder(self.decoder)

    @classmethod
    def load(cls, checkpoint: Path) -> "Networks | None":
        """The networks of a saved pipeline's folder, or None if its autoencoder has another shape."""
        networks = cls()
        saved = AutoencoderOobleck.from_pretrained(checkpoint / "vae", dtype=torch.float32)
        shape = new_autoencoder().config
        if any(saved.config[name] != shape[name] for name in shape if not name.startswith("_")):
            return None
        networks.encoder = narrow_from(saved.encoder)
        networks.decoder.load_state_dict(saved.decoder.state_dict())
        return networks

    def autoencoder(self) -> Any:
        """Both in diffusers' class."""
        whole = new_autoencoder()
        widen(self.encoder, whole.encoder)
        whole.decoder.load_state_dict(self.decoder.state_dict())
        return whole.eval()


@dataclass(frozen=True)
class Clip:
    """Audio (2, samples), its latents (64, frames), and what the encoder's fixed part makes of it, on the encoder's device."""

    audio: Tensor
    latents: Tensor
    analysed: Tensor

    @classmethod
    def of(cls, audio: np.ndarray, encoder: NarrowEncoder) -> "Clip":
        device = next(encoder.parameters()).device
        sound = torch.from_numpy(audio.astype(np.float32)).to(device)
        with torch.no_grad():
            analysed = encoder.analyse(sound[None])[0]
        return cls(sound, torch.from_numpy(analyse(audio)).T.to(device), analysed)


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
    clip = Clip.of(audio, networks.encoder)
    encoded = networks.encoder.encode(clip.analysed[None])[0, :LATENTS]
    error = encoded - clip.latents
    figures = [float(error[LINEAR:].square().mean().sqrt()), float(error[:LINEAR].square().mean().sqrt())]
    for latents in (encoded, clip.latents):
        played = networks.decoder(latents[None])[0]
        wanted = clip.audio[:, : played.shape[-1]]
        figures += [log_spectral_distance(played, wanted), low_signal_to_noise(played, wanted)]
    return figures

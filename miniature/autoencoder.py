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

    To produce 64 latents, diffusers' class needs an encoder that is 128 channels wide at 48 kHz, and it gives encoder and
    decoder the same channel multiples. Most of the encoder's channels are therefore unused: their weights are zeros.
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
    """What is trained: the encoder without its idle channels, and the decoder.

    If the autoencoder has another shape, as the first packaged one has, only its decoder is trained: `encoder` is None, and
    `rest` is the whole saved autoencoder.
    """

    def __init__(self, rest: Any = None) -> None:
        super().__init__()
        self._rest = [rest]  # in a list, so that its parameters are not this module's
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = NarrowEncoder() if rest is None else None
            self.decoder: Any = (new_autoencoder() if rest is None else _like(rest)).decoder
            if rest is None:
                start_decoder(self.decoder)

    def copy(self) -> "Networks":
        """The same on the CPU: torch's deepcopy refuses modules with weight norm."""
        networks = Networks(self._rest[0])
        networks.load_state_dict(self.state_dict())
        return networks

    @classmethod
    def load(cls, checkpoint: Path) -> "Networks":
        """The networks of a saved pipeline's folder."""
        saved = AutoencoderOobleck.from_pretrained(checkpoint / "vae", dtype=torch.float32)
        shape = new_autoencoder().config
        if any(saved.config[name] != shape[name] for name in shape if not name.startswith("_")):
            return cls(saved)
        networks = cls()
        networks.encoder = narrow_from(saved.encoder)
        networks.decoder.load_state_dict(saved.decoder.state_dict())
        return networks

    def autoencoder(self) -> Any:
        """Both in diffusers' class."""
        whole = new_autoencoder() if self.encoder is not None else _like(self._rest[0])
        if self.encoder is not None:
            widen(self.encoder, whole.encoder)
        whole.decoder.load_state_dict(self.decoder.state_dict())
        return whole.eval()


def _like(autoencoder: Any) -> Any:
    copy = AutoencoderOobleck.from_config(autoencoder.config)
    copy.load_state_dict(autoencoder.state_dict())
    return copy


@dataclass(frozen=True)
class Clip:
    """Audio (2, samples), its latents (64, frames), and what an encoder's fixed part makes of it; nothing without an encoder."""

    audio: Tensor
    latents: Tensor
    analysed: Tensor

    @classmethod
    def of(cls, audio: np.ndarray, networks: Networks) -> "Clip":
        device = next(networks.decoder.parameters()).device
        sound = torch.from_numpy(audio.astype(np.float32)).to(device)
        latents = torch.from_numpy(analyse(audio)).T.to(device)
        if networks.encoder is None:
            return cls(sound, latents, sound.new_zeros(0, latents.shape[1] * STRIDES[-1]))
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
    encoded = clip.latents if networks.encoder is None else networks.encoder.encode(clip.analysed[None])[0, :LATENTS]
    error = encoded - clip.latents
    figures = [float(error[LINEAR:].square().mean().sqrt()), float(error[:LINEAR].square().mean().sqrt())]
    for latents in (encoded, clip.latents):
        played = networks.decoder(latents[None])[0]
        wanted = clip.audio[:, : played.shape[-1]]
        figures += [log_spectral_distance(played, wanted), low_signal_to_noise(played, wanted)]
    return figures

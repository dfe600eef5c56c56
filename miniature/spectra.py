"""How unlike two pieces of audio sound: the decoder's loss, and the figures of a round trip."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from miniature.latents import SAMPLE_RATE

WINDOWS = (4096, 2048, 1024, 512, 256)
LOUDNESS_FLOOR = 2e-3  # added before a logarithm: what is quieter in a line of a spectrum is not heard
FIGURE_WINDOW = 2048
FIGURE_FLOOR_DB = -80.0  # below the loudest line
LOW_HZ = 1200.0


def decoder_loss(played: Tensor, wanted: Tensor) -> Tensor:
    """The distance of spectra with five windows, linear and logarithmic, and of the waveforms.

    Both (batch, 2, samples). Each term is relative: 1 is the distance of silence from the music, nearly.
    """
    linear = torch.zeros((), device=played.device)
    logarithmic = torch.zeros((), device=played.device)
    for heard, target in zip(_spectra(played), _spectra(wanted), strict=True):
        linear = linear + (heard - target).abs().sum() / target.sum()
        logarithmic = logarithmic + ((heard + LOUDNESS_FLOOR).log() - (target + LOUDNESS_FLOOR).log()).abs().mean()
    waveform = (played - wanted).abs().sum() / wanted.abs().sum()
    return (linear + 0.5 * logarithmic) / len(WINDOWS) + waveform


def _spectra(audio: Tensor) -> Iterator[Tensor]:
    for window in WINDOWS:
        yield magnitudes(audio, window) / math.sqrt(window)


def magnitudes(audio: Tensor, window: int) -> Tensor:
    """The magnitudes of Hann-windowed spectra, a quarter window apart: (channels, lines, windows)."""
    channels = audio.reshape(-1, audio.shape[-1])
    shape = torch.hann_window(window, device=audio.device)
    spectra = torch.stft(channels, window, window // 4, window=shape, return_complex=True)
    # The root's slope is infinite at zero.
    lengths: Tensor = (spectra.real.square() + spectra.imag.square() + 1e-9).sqrt()
    return lengths


def log_spectral_distance(played: Tensor, wanted: Tensor) -> float:
    """The root mean square difference in dB of two spectra; each is cut 80 dB below the loudest line of `wanted`."""
    target = magnitudes(wanted, FIGURE_WINDOW)
    floor = target.max() * 10 ** (FIGURE_FLOOR_DB / 20)
    levels = [20 * spectra.clamp(min=float(floor)).log10() for spectra in (magnitudes(played, FIGURE_WINDOW), target)]
    return float((levels[0] - levels[1]).square().mean().sqrt())


def low_signal_to_noise(played: Tensor, wanted: Tensor) -> float:
    """The power of `wanted` over that of the difference in dB, of both channels' mean below 1.2 kHz."""
    target = _low(wanted)
    error = _low(played) - target
    return float(10 * (target.square().sum() / error.square().sum()).log10())


def _low(audio: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(audio.mean(-2))
    frequencies = torch.fft.rfftfreq(audio.shape[-1], 1 / SAMPLE_RATE)
    low: Tensor = torch.fft.irfft(spectrum * (frequencies < LOW_HZ), audio.shape[-1])
    return low

"""Music to encode, and decoders that did not write what they read."""

import io
from collections.abc import Callable
from typing import get_args

import av
import numpy as np
import numpy.typing as npt
import soundfile

from serve_app.audio import Tags
from serve_app.music import SAMPLE_RATE, Format

FORMATS: tuple[Format, ...] = get_args(Format)
LOSSLESS = ("flac", "wav", "wav32")
Signal = Callable[[float], npt.NDArray[np.float32]]
TAGS = Tags(title="song", prompt="piano", seed=7, model="ace-step")
WINDOW = 48
"""1 ms: what a codec leaves unflushed is seldom shorter."""


def music(seconds: float) -> npt.NDArray[np.float32]:
    """Chords in soft noise, as loud at the ends as in the middle."""
    frames = round(seconds * SAMPLE_RATE)
    time_s = np.arange(frames) / SAMPLE_RATE
    chord = np.sum([np.sin(2 * np.pi * tone * time_s + tone) for tone in (110, 220, 277, 330, 440, 880)], axis=0)
    noise = np.random.default_rng(1).standard_normal((frames, 2))
    samples = 0.08 * np.stack([chord, np.roll(chord, 12)], axis=1) + 0.02 * noise
    return samples.astype(np.float32)


def tones(seconds: float) -> npt.NDArray[np.float32]:
    """A steady tone on each side, in which every error is audible."""
    time_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    left = 0.5 * np.sin(2 * np.pi * 440 * time_s)
    right = 0.3 * np.sin(2 * np.pi * 660 * time_s + 1)
    return np.stack([left, right], axis=1).astype(np.float32)


def by_libsndfile(file: bytes) -> npt.NDArray[np.float32]:
    """The samples that libsndfile decodes."""
    samples, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    return np.asarray(samples)


def by_pyav(file: bytes) -> npt.NDArray[np.float32]:
    """The samples that FFmpeg's libraries decode."""
    with av.open(io.BytesIO(file), "r") as container:
        resampler = av.AudioResampler(format="flt", layout="stereo")
        frames = [part.to_ndarray() for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.asarray(np.concatenate(frames, axis=1).reshape(-1, 2), np.float32)


def by_edit_list(file: bytes) -> npt.NDArray[np.float32]:
    """The samples that a player which follows an m4a's edit list plays; FFmpeg's libraries also play the last frame's padding."""
    length, delay = edit_list(file)
    played = by_pyav(file)
    assert delay == 1024  # which FFmpeg drops
    return played[:length]


def edit_list(file: bytes) -> tuple[int, int]:
    """How many samples an m4a's one edit shows, and how many of the first are left out, read from its boxes (ISO 14496-12)."""
    movie = box(box(file, b"moov"), b"mvhd")
    version = movie[0]
    timescale = int.from_bytes(movie[12:16], "big")
    edits = box(box(box(box(file, b"moov"), b"trak"), b"edts"), b"elst")
    assert (version, timescale) == (0, SAMPLE_RATE)
    assert (edits[0], int.from_bytes(edits[4:8], "big")) == (0, 1)
    return int.from_bytes(edits[8:12], "big"), int.from_bytes(edits[12:16], "big")


def box(data: bytes, kind: bytes) -> bytes:
    """The content of the first box of a kind."""
    start = 0
    while data[start + 4 : start + 8] != kind:
        start += int.from_bytes(data[start : start + 4], "big")
    return data[start + 8 : start + int.from_bytes(data[start : start + 4], "big")]


def decoders(format: Format) -> tuple[Callable[[bytes], npt.NDArray[np.float32]], ...]:
    """The decoders of a format on this machine."""
    return (by_edit_list,) if format == "aac" else (by_libsndfile, by_pyav)


def errors(played: npt.NDArray[np.float32], samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The root mean square of the error in each window, the last one ending with the song."""
    error = np.square(played - samples).mean(axis=1)
    windows = error[len(error) % WINDOW :].reshape(-1, WINDOW)
    return np.asarray(np.sqrt(windows.mean(axis=1)))

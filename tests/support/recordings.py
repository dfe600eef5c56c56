"""Short recordings as files in every format that people upload, and open files for the decoder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import Final, cast

import av
import numpy as np
import numpy.typing as npt
import soundfile
from av.audio.stream import AudioStream

from serve_app.audio import Tags, encode
from serve_app.music import SAMPLE_RATE, Format

OURS: Final[tuple[Format, ...]] = ("mp3", "flac", "wav", "wav32", "ogg", "opus", "aac")
FORMATS: Final = (*OURS, "webm", "adts", "mov")
"""The formats of `recording`."""


@cache
def tones(seconds: float = 2.0, rate: int = SAMPLE_RATE) -> npt.NDArray[np.float32]:
    """440 Hz on the left, 330 Hz on the right."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * 440 * time), 0.2 * np.sin(2 * np.pi * 330 * time)], 1).astype(np.float32)


@cache
def recording(format: str, seconds: float = 2.0) -> bytes:
    """A file of `tones`."""
    samples = tones(seconds)
    if format in OURS:
        return encode(samples, format, Tags("title", "prompt", 1, "model"))
    codec = {"webm": "libopus", "adts": "aac", "mov": "aac"}[format]
    return _by_ffmpeg(samples, format, codec)


def pcm(samples: npt.NDArray[np.float32], rate: int, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """A file by libsndfile."""
    file = BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def long_silence(hours: float) -> bytes:
    """A FLAC file of silence: 600 kB an hour."""
    file = BytesIO()
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, format="FLAC", subtype="PCM_16") as sound:
        for _ in range(round(60 * hours)):
            sound.write(np.zeros(60 * SAMPLE_RATE, np.int16))
    return file.getvalue()


@contextmanager
def opened(data: bytes) -> Iterator[int]:
    """A descriptor of a file with this content."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.fileno()


def _by_ffmpeg(samples: npt.NDArray[np.float32], container: str, codec: str) -> bytes:
    file = BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = cast(AudioStream, output.add_stream(codec, rate=SAMPLE_RATE))
        stream.codec_context.layout = "stereo"
        stream.bit_rate = 192_000
        stream.codec_context.open()
        size = stream.codec_context.frame_size
        resampler = av.AudioResampler(stream.codec_context.format, "stereo", SAMPLE_RATE, size)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="stereo")
        frame.sample_rate = SAMPLE_RATE
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()

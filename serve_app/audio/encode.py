"""A song into the bytes of a file, in memory, and the same bytes every time.

MP3 is LAME's, Opus libopus's and AAC FFmpeg's by way of PyAV, the others are libsndfile's, whose own MP3 and Opus take three times
as long and whose Opus ends in wrong samples.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile
from mutagen.ogg import OggPage

from serve_app.audio.mp3 import Mp3Encoder, xing_frame
from serve_app.audio.pyav import OPUS, AvEncoder, Codec, aac
from serve_app.audio.tags import Tags, add_tags
from serve_app.music import SAMPLE_RATE, Format

_BLOCK_FRAMES: Final = SAMPLE_RATE
"""One second. libsndfile kills the process when about a minute or more of Vorbis comes in one write."""

_LIBSNDFILE: Final[dict[Format, dict[str, Any]]] = {
    # 16 bits: what a bfloat16 decoder leaves of a song lies far above their noise, every player reads them, and 24 bits
    # make the file 1.7 times as large with noise. Who wants all bits asks for wav32.
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "wav32": {"format": "WAV", "subtype": "FLOAT"},
    # Vorbis's q6 (its quality is 1 - level), about 190 kbit/s.
    "ogg": {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.4},
}


@dataclass(frozen=True)
class Song:
    """One generated song: float32 samples of shape (frames, 2) in [-1, 1] at 48 kHz, and the seed they came from."""

    seed: int
    samples: npt.NDArray[np.float32]


def encode(samples: npt.NDArray[np.float32], format: Format, tags: Tags) -> bytes:
    """The file of a song, in memory.

    `samples` are float32 of shape (frames, 2) in [-1, 1] at 48 kHz; what is out of range is clipped, and whether they are
    finite is checked before they come here. The same samples and tags give the same bytes, and the file plays exactly
    as many samples as came in. Raises `soundfile.LibsndfileError`, `av.FFmpegError` or `RuntimeError` (LAME's) when the
    codec fails.
    """
    match format:
        case "mp3":
            file = _mp3(samples)
        case "opus":
            file = _by_pyav(samples, OPUS)
        case "aac":
            file = _by_pyav(samples, aac(len(samples)))
        case _:
            file = _libsndfile(samples, format)
    if format == "wav32":
        _clear_peak_time(file)
    add_tags(file, format, tags)
    if format in ("ogg", "opus"):
        _set_serial(file, tags.seed)
    return file.getvalue()  # CPython hands its buffer over: no second copy of a long song


def _blocks(samples: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    return [samples[start : start + _BLOCK_FRAMES] for start in range(0, len(samples), _BLOCK_FRAMES)]


def _mp3(samples: npt.NDArray[np.float32]) -> BytesIO:
    encoder = Mp3Encoder()
    frames = b"".join([*map(encoder.write, _blocks(samples)), encoder.finish()])
    return BytesIO(xing_frame(frames, len(samples)) + frames)


def _by_pyav(samples: npt.NDArray[np.float32], codec: Codec) -> BytesIO:
    file = BytesIO()
    encoder = AvEncoder(codec, file)
    for block in _blocks(samples):
        encoder.write(block)
    encoder.finish()
    return file


def _libsndfile(samples: npt.NDArray[np.float32], format: Format) -> BytesIO:
    file = BytesIO()
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, samples.shape[1], **_LIBSNDFILE[format]) as sound:
        for block in _blocks(samples):
            sound.write(block)
    return file


def _clear_peak_time(file: BytesIO) -> None:
    """Zero the time of day that libsndfile writes into the PEAK chunk of float WAV.

    The chunk is `PEAK`, u32 size, u32 version, u32 time, then the peaks (`wavlike_write_peak_chunk` in libsndfile).
    """
    with file.getbuffer() as data:
        start = bytes(data[:128]).index(b"PEAK")
        data[start + 12 : start + 16] = bytes(4)


def _set_serial(file: BytesIO, seed: int) -> None:
    """Give every page of an Ogg stream a serial number (RFC 3533, 6) made of the seed: libsndfile draws a random one."""
    file.seek(0)
    end = file.getbuffer().nbytes
    while file.tell() < end:
        page = OggPage(file)
        page.serial = seed % 2**32
        file.seek(page.offset)
        file.write(page.write())  # of the same length, with the CRC made anew

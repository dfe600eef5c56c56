"""Encodes a song to an audio file in memory. The same samples and tags give the same bytes.

LAME encodes MP3, PyAV encodes Opus (libopus) and AAC (FFmpeg), and libsndfile encodes the other formats. libsndfile could encode
MP3 and Opus as well, but takes three times as long, and the last samples of its Opus files are wrong.
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
from serve_app.music.lyric_times import LineTime

_BLOCK_FRAMES: Final = SAMPLE_RATE
"""One second. libsndfile crashes the process when one write has about a minute of Vorbis or more."""

_LIBSNDFILE: Final[dict[Format, dict[str, Any]]] = {
    # 16 bits: their quantisation noise is far below the error of a bfloat16 decoder, and every player reads them. With 24 bits
    # the file is 1.7 times as large, and the additional bits hold noise. Clients that need all bits can request wav32.
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "wav32": {"format": "WAV", "subtype": "FLOAT"},
    # Vorbis quality 6, about 190 kbit/s. (libsndfile sets the quality, 0 to 1, to 1 - compression_level.)
    "ogg": {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.4},
}


@dataclass(frozen=True)
class Candidate:
    """A song that was played to be compared with others."""

    seed: int
    lyric_score: float


@dataclass(frozen=True)
class Song:
    """A generated song and its seed. `samples` are float32 of shape (frames, 2) in [-1, 1] at 48 kHz."""

    seed: int
    samples: npt.NDArray[np.float32]
    track: str | None = None
    """The track of the source that it is; None if it is no stem."""
    latents: npt.NDArray[np.float32] | None = None
    """What the samples were decoded from, of shape (latent frames, 64); None if the engine has no latents."""
    codes: tuple[int, ...] | None = None
    """The audio codes of its latents, five a second; None if the model has none or they are not kept."""
    gain: float = 1.0
    """What the decoded samples were multiplied by."""
    lyric_score: float | None = None
    """How closely it follows its lyrics, from 0 to 1; None if the request did not ask for it."""
    lyrics: tuple[LineTime, ...] | None = None
    """When its lyrics are sung; None if the request did not ask for it."""
    candidates: tuple[Candidate, ...] | None = None
    """The songs of which it follows its lyrics best, itself included; None if it was the only one."""


def encode(samples: npt.NDArray[np.float32], format: Format, tags: Tags) -> bytes:
    """Returns the audio file of a song.

    `samples` are float32 of shape (frames, 2) in [-1, 1] at 48 kHz. Values out of this range are clipped; the caller must check
    that all values are finite. A player decodes exactly as many samples as were given. The same arguments give the same bytes.

    Raises:
        soundfile.LibsndfileError, av.FFmpegError, RuntimeError (LAME): the codec failed.
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
    return file.getvalue()  # CPython shares the buffer, so a long song is not copied


def _blocks(samples: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Splits the samples into blocks of one second."""
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
    """Overwrites with zero the current time that libsndfile writes into the PEAK chunk of a float WAV file.

    The chunk consists of `PEAK`, u32 size, u32 version, u32 time and the peaks (`wavlike_write_peak_chunk` in libsndfile).
    """
    with file.getbuffer() as data:
        start = bytes(data[:128]).index(b"PEAK")
        data[start + 12 : start + 16] = bytes(4)


def _set_serial(file: BytesIO, seed: int) -> None:
    """Sets the serial number of every Ogg page (RFC 3533, 6) to the seed, modulo 2^32. libsndfile writes a random number."""
    file.seek(0)
    end = file.getbuffer().nbytes
    while file.tell() < end:
        page = OggPage(file)
        page.serial = seed % 2**32
        file.seek(page.offset)
        file.write(page.write())  # has the same length; mutagen computes the new CRC

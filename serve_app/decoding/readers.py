"""Reads the samples of a file block by block: libsndfile for mono and stereo in the formats that it knows, PyAV for the rest.

PyAV (FFmpeg) could follow references to other files and addresses. It therefore gets an open file and no name, and may use only the
containers and codecs named here, none of which is a playlist, and no network protocol.
"""

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final, Protocol

import av
import numpy as np
import numpy.typing as npt
import soundfile
from av.audio.stream import AudioStream

from serve_app.decoding.containers import container_of, is_truncated
from serve_app.errors import DamagedAudio, UnreadableAudio

_BLOCK_FRAMES: Final = 48_000
_LIBSNDFILE: Final = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "AIFF", "CAF", "AU")
"""Not MP3: python-soundfile seeks after each block, and libsndfile's seek in an MP3 file is not exact, so samples get lost."""

_OUT_OF_MEMORY: Final = "malloc"

_CONTAINERS: Final = "mov,matroska,ogg,aac,wav,flac,mp3,aiff,caf,amr"
_CODECS: Final = frozenset(
    {
        "aac", "aac_fixed", "mp3", "mp3float", "opus", "libopus", "vorbis", "libvorbis", "flac", "alac", "amrnb", "amrwb",
        "pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be",
        "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw",
    }
)  # fmt: skip
_OPTIONS: Final = {
    "format_whitelist": _CONTAINERS,
    "codec_whitelist": ",".join(sorted(_CODECS)),
    "protocol_whitelist": "none",
}

_LOWEST_RATE: Final = 4_000
_HIGHEST_RATE: Final = 384_000
_MOST_CHANNELS: Final = 8
_MAX_REASON: Final = 200

FORMATS: Final = "wav, flac, mp3, ogg (Vorbis or Opus), aac, m4a, webm, aiff, caf or amr"


class Reader(Protocol):
    """An open audio file."""

    format: str
    sample_rate: int
    channels: int
    """Channels of the file."""
    declared_s: float | None
    """The length in seconds that the header states; None if it states none."""

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the samples as float32 of shape (frames, 1 or 2). Raises DamagedAudio and MemoryError."""


def open_reader(descriptor: int) -> Reader:
    """Open a file. Raises UnreadableAudio if it is not audio or not of a known format, DamagedAudio, and MemoryError."""
    file = os.fdopen(os.dup(descriptor), "rb")
    container = container_of(file)
    if container is None:
        raise UnreadableAudio(f"The file is not audio in a format that Sophia knows. Send {FORMATS}")
    if is_truncated(file, container):
        raise DamagedAudio(f"The file is truncated: its end is missing ({container})")
    reader = _open_libsndfile(file, container) or _AvReader(file, container)
    _check_bounds(reader)
    return reader


def _check_bounds(reader: Reader) -> None:
    if not _LOWEST_RATE <= reader.sample_rate <= _HIGHEST_RATE:
        raise UnreadableAudio(
            f"The audio has a sample rate of {reader.sample_rate} Hz; it must be from {_LOWEST_RATE} to {_HIGHEST_RATE} Hz"
        )
    if not 1 <= reader.channels <= _MOST_CHANNELS:
        raise UnreadableAudio(f"The audio has {reader.channels} channels; it must have from 1 to {_MOST_CHANNELS}")


def _open_libsndfile(file: BinaryIO, container: str) -> "_SndfileReader | None":
    """A reader for mono or stereo in a format of libsndfile; None for any other file, which PyAV may know."""
    file.seek(0)
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        if _OUT_OF_MEMORY in str(error):
            raise MemoryError from error
        return None
    if sound.format not in _LIBSNDFILE or sound.channels > 2:
        return None
    return _SndfileReader(sound, container)


class _SndfileReader:
    def __init__(self, sound: soundfile.SoundFile, container: str) -> None:
        self._sound = sound
        self.format = container
        self.sample_rate = int(sound.samplerate)
        self.channels = int(sound.channels)
        self.declared_s: float | None = sound.frames / max(self.sample_rate, 1)

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        while True:
            try:
                block = self._sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise DamagedAudio(f"The file is damaged ({self.format}): {_reason(error)}") from error
            if not len(block):
                return
            yield block


class _AvReader:
    """Reads the first audio stream with PyAV."""

    def __init__(self, file: BinaryIO, container: str) -> None:
        file.seek(0)
        self.format = container
        try:
            self._container = av.open(file, "r", options=_OPTIONS)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError) as error:
            raise DamagedAudio(f"The file is damaged, or its end is missing ({container}): {_reason(error)}") from error
        self._stream = self._audio_stream()
        self.sample_rate = int(self._stream.codec_context.sample_rate or 0)
        self.channels = int(self._stream.codec_context.channels or 0)
        self.declared_s = self._declared_s()

    def _audio_stream(self) -> AudioStream:
        streams = self._container.streams.audio
        if not streams:
            raise UnreadableAudio(f"The file ({self.format}) contains no audio")
        stream = streams[0]
        codec = stream.codec_context.name if stream.codec_context is not None else "unknown"
        if codec not in _CODECS:
            raise UnreadableAudio(f"The audio of the file ({self.format}) has the codec {codec!r}. Send {FORMATS}")
        stream.codec_context.thread_count = 1
        return stream

    def _declared_s(self) -> float | None:
        stream = self._stream
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        return self._container.duration / av.time_base if self._container.duration else None

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        left = self._frames()
        for block in self._decoded():
            yield block[:left]
            left -= len(block)
            if left <= 0:
                return

    def _frames(self) -> int:
        """The most frames to return. An MP4 file's edit list ends the audio within its last packet, which FFmpeg decodes whole."""
        if self.format != "mp4" or self.declared_s is None:
            return sys.maxsize
        return round(self.declared_s * self.sample_rate)

    def _decoded(self) -> Iterator[npt.NDArray[np.float32]]:
        resampler = av.AudioResampler(format="flt", layout="stereo", rate=self.sample_rate)  # keeps the sample rate
        try:
            for frame in self._container.decode(self._stream):
                for converted in resampler.resample(frame):
                    yield _samples_of(converted)
            for converted in resampler.resample(None):
                yield _samples_of(converted)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError) as error:
            raise DamagedAudio(f"The file is damaged ({self.format}): {_reason(error)}") from error


def _samples_of(frame: av.AudioFrame) -> npt.NDArray[np.float32]:
    """The samples of an interleaved stereo frame."""
    return frame.to_ndarray().reshape(-1, 2).astype(np.float32, copy=False)


def _reason(error: Exception) -> str:
    """The codec's own words. FFmpeg's errors also have a number and the name of a function, which say nothing to a client."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).partition("\n")[0][:_MAX_REASON]

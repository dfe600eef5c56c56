"""Finished songs into files: encoded in memory, tagged with mutagen, and the same bytes every time.

Opus is encoded by FFmpeg's libopus, the other formats by libsndfile. Nothing here needs torch, or an installed FFmpeg:
PyAV brings its libraries. What is out of range is clipped; whether samples are finite is checked before they come here.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt
import soundfile
from mutagen.flac import FLAC
from mutagen.id3 import COMM, TIT2, TXXX, Encoding
from mutagen.mp3 import MP3
from mutagen.ogg import OggPage
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from serve_app.schemas import SAMPLE_RATE, Format

_BLOCK_FRAMES: Final = SAMPLE_RATE
"""One second. libsndfile kills the process when about a minute or more of Vorbis comes in one write."""

_CODECS: Final[dict[Format, dict[str, Any]]] = {
    # LAME's V2, about 190 kbit/s. The mode is heard only when a level is given.
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.2},
    # 16 bits: what a bfloat16 decoder leaves of a song lies far above their noise, every player reads them, and 24 bits
    # make the file 1.7 times as large with noise. Who wants all bits asks for wav32.
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "wav32": {"format": "WAV", "subtype": "FLOAT"},
    # Vorbis's q6 (its quality is 1 - level), about 190 kbit/s.
    "ogg": {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.4},
}


_OPUS_BITS_PER_SECOND: Final = 128_000


@dataclass(frozen=True)
class Song:
    """One generated song: float32 samples of shape (frames, 2) in [-1, 1] at 48 kHz, and the seed they came from."""

    seed: int
    samples: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tags:
    """What a file says of itself. Nothing that differs between two runs, so that files can be compared by hash."""

    title: str
    prompt: str
    seed: int
    model: str


def encode(samples: npt.NDArray[np.float32], format: Format, tags: Tags) -> bytes:
    """The file of a song, in memory.

    `samples` are float32 of shape (frames, 2) in [-1, 1] at 48 kHz. The same samples and tags give the same bytes.
    Title, prompt (as the comment), seed and model are ID3v2.4 in MP3 and WAV, Vorbis comments in the others.
    Raises `soundfile.LibsndfileError` or `av.FFmpegError` when the codec fails.
    """
    file = _write_opus(samples) if format == "opus" else _write(samples, format)
    match format:
        case "mp3":
            _add_id3(MP3, file, tags)
        case "wav":
            _add_id3(WAVE, file, tags)
        case "wav32":
            _clear_peak_time(file)
            _add_id3(WAVE, file, tags)
        case "flac":
            _add_comments(FLAC, file, tags)
        case "ogg":
            _add_comments(OggVorbis, file, tags)
            _set_serial(file, tags.seed)
        case "opus":
            _add_comments(OggOpus, file, tags)
            _set_serial(file, tags.seed)
    return file.getvalue()  # CPython hands its buffer over: no second copy of a long song


def _write(samples: npt.NDArray[np.float32], format: Format) -> BytesIO:
    file = BytesIO()
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, samples.shape[1], **_CODECS[format]) as sound:
        for start in range(0, len(samples), _BLOCK_FRAMES):
            sound.write(samples[start : start + _BLOCK_FRAMES])
    return file


def _write_opus(samples: npt.NDArray[np.float32]) -> BytesIO:
    """Ogg Opus by FFmpeg. libsndfile does not flush libopus's look-ahead, so its files end in wrong samples."""
    file = BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="stereo", format="flt")
        stream.bit_rate = _OPUS_BITS_PER_SECOND
        for start in range(0, len(samples), _BLOCK_FRAMES):
            block = np.clip(samples[start : start + _BLOCK_FRAMES], -1, 1)
            frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="flt", layout="stereo")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def _add_id3(kind: Any, file: BytesIO, tags: Tags) -> None:
    """ID3 in WAV too: an INFO list names no encoding, has no place for a seed, and libsndfile drops long texts in it."""
    song = _open(kind, file)
    song.add_tags()
    song.tags.add(TIT2(encoding=Encoding.UTF8, text=tags.title))
    # XXX is ID3's "language not known".
    song.tags.add(COMM(encoding=Encoding.UTF8, lang="XXX", desc="", text=tags.prompt))
    song.tags.add(TXXX(encoding=Encoding.UTF8, desc="seed", text=str(tags.seed)))
    song.tags.add(TXXX(encoding=Encoding.UTF8, desc="model", text=tags.model))
    _save(song, file)


def _add_comments(kind: Any, file: BytesIO, tags: Tags) -> None:
    song = _open(kind, file)
    song["title"] = tags.title
    song["comment"] = tags.prompt
    song["seed"] = str(tags.seed)
    song["model"] = tags.model
    _save(song, file)


def _open(kind: Any, file: BytesIO) -> Any:
    file.seek(0)
    return kind(file)


def _save(song: Any, file: BytesIO) -> None:
    file.seek(0)
    song.save(file)


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

import hashlib
import io
import subprocess
import sys
import time
import tracemalloc
from typing import Any, get_args

import mutagen
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from serve_app.audio import Tags, encode
from serve_app.audio.tags import ENCODER, SOURCE_TYPE
from serve_app.music import SAMPLE_RATE, Format
from tests.support.paths import ROOT
from tests.support.signals import decoders, edit_list

FORMATS: tuple[Format, ...] = get_args(Format)
# 4000 characters is the longest prompt that a request may have.
TAGS = Tags(
    title="雨の歌 – Дождь – مطر ☔🎹",
    prompt="שיר 🌧 " * 666 + "日本",
    seed=4_294_967_295,
    model="ace-step",
    bpm=92,
    key="F# minor",
    lyrics="[verse]\n雨が降る\nмир ☔" + "la " * 6000,
)


def tones(seconds: float) -> npt.NDArray[np.float32]:
    """A loud 440 Hz tone on the left and a soft 660 Hz tone on the right."""
    time_s = np.arange(round(seconds * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    left = 0.5 * np.sin(2 * np.pi * 440 * time_s)
    right = 0.1 * np.sin(2 * np.pi * 660 * time_s)
    return np.stack([left, right], axis=1).astype(np.float32)


NAMES = {
    "ID3": {
        "title": "TIT2", "comment": "COMM::XXX", "encoder": "TSSE", "bpm": "TBPM", "key": "TKEY", "lyrics": "USLT::XXX",
        "seed": "TXXX:seed", "model": "TXXX:model", "source type": "TXXX:digitalsourcetype",
    },
    "MP4Tags": {
        "title": "\xa9nam", "comment": "\xa9cmt", "encoder": "\xa9too", "bpm": "tmpo", "lyrics": "\xa9lyr",
        "key": "----:com.apple.iTunes:initialkey", "seed": "----:com.apple.iTunes:seed",
        "model": "----:com.apple.iTunes:model", "source type": "----:com.apple.iTunes:digitalsourcetype",
    },
    "": {
        "title": "title", "comment": "comment", "encoder": "encoder", "bpm": "bpm", "key": "initialkey", "lyrics": "lyrics",
        "seed": "seed", "model": "model", "source type": "digitalsourcetype",
    },
}  # fmt: skip
"""Where each kind of tags has what, by mutagen's class for it."""


def read_tags(file: bytes) -> dict[str, str]:
    """The tags that mutagen finds in a file of any format, under our names."""
    found: Any = mutagen.File(io.BytesIO(file)).tags
    kind = next(base.__name__ for base in [*type(found).__mro__, type("", (), {})] if base.__name__ in NAMES)
    return {name: text_of(found[tag]) for name, tag in NAMES[kind].items() if tag in found}


def text_of(value: Any) -> str:
    first = value[0] if isinstance(value, list) else value
    return first.decode() if isinstance(first, bytes) else str(first)


@pytest.mark.parametrize("format", FORMATS)
def test_file_has_the_rate_channels_and_exact_length_of_the_song(format: Format) -> None:
    """Every format reads back at 48 kHz, in stereo, with as many frames as were written."""
    samples = tones(2.345)

    file = encode(samples, format, TAGS)

    info = mutagen.File(io.BytesIO(file)).info
    assert (getattr(info, "sample_rate", 48_000), info.channels) == (48_000, 2)  # Opus has no other rate
    assert len(decoders(format)[0](file)) == len(samples)


# One step of 16 bits for PCM; the lossy codecs' figures are 2 to 4 times what was measured for these tones.
@pytest.mark.parametrize(
    ("format", "tolerance"),
    [
        ("wav32", 0),
        ("wav", 1 / 32768),
        ("flac", 1 / 32768),
        ("mp3", 0.005),
        ("ogg", 0.02),
        ("opus", 0.03),
        ("aac", 0.07),
    ],
)
def test_file_plays_the_song(format: Format, tolerance: float) -> None:
    """Every format gives back the samples of both channels within its codec's accuracy."""
    samples = tones(2)

    played = decoders(format)[0](encode(samples, format, TAGS))

    middle = slice(4800, -4800)  # a lossy codec smears a tone's hard start and end
    assert np.abs(played - samples)[middle].max() <= tolerance


@pytest.mark.fault("C5")
@pytest.mark.parametrize("frames", [960, 12_345, 48_000, 48_961, 95_688, 480_000])
def test_opus_is_right_up_to_both_ends(frames: int) -> None:
    """The first and the last 5 ms of an Opus file differ from the song by at most 4 times what its middle does."""
    samples = tones(frames / SAMPLE_RATE)

    played, _ = soundfile.read(io.BytesIO(encode(samples, "opus", TAGS)), dtype="float32")

    assert len(played) == frames
    error = np.abs(played - samples)
    middle = max(float(error[240:-240].max()), 0.02)
    assert error[:240].max() <= 4 * middle
    assert error[-240:].max() <= 4 * middle


@pytest.mark.fault("C10")
@pytest.mark.parametrize("format", FORMATS)
def test_tags_hold_any_script(format: Format) -> None:
    """All tags are read back unchanged, in any script and with emoji."""
    file = encode(tones(0.5), format, TAGS)

    assert read_tags(file) == {
        "title": TAGS.title,
        "comment": TAGS.prompt,
        "encoder": ENCODER,
        "bpm": "92",
        "key": "F#m",
        "lyrics": TAGS.lyrics,
        "seed": "4294967295",
        "model": "ace-step",
        "source type": SOURCE_TYPE,
    }


@pytest.mark.fault("C10")
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_known_of_a_song_is_in_no_tag(format: Format) -> None:
    """A song without bpm, key and lyrics gets no tags for them."""
    file = encode(tones(0.5), format, Tags(title="song", prompt="piano", seed=7, model="ace-step"))

    assert not {"bpm", "key", "lyrics"} & set(read_tags(file))


@pytest.mark.parametrize("format", ["mp3", "flac", "ogg", "opus"])
def test_another_library_reads_the_title(format: Format) -> None:
    """libsndfile, which did not write the tags, reads the same title."""
    file = encode(tones(0.5), format, TAGS)

    with soundfile.SoundFile(io.BytesIO(file)) as sound:
        assert sound.title == TAGS.title


def test_same_song_gives_the_same_bytes_in_another_process_at_another_time() -> None:
    """The file's bytes depend on samples and tags only, not on clock, random numbers or process."""
    here = fingerprints()
    second = int(time.time())
    while int(time.time()) == second:  # float WAV would hold the time in whole seconds
        time.sleep(0.01)

    program = "from tests.integration import test_audio; print(*test_audio.fingerprints())"
    there = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert there.stdout.split() == here


def fingerprints() -> list[str]:
    """The SHA-256 of one song in every format."""
    samples = tones(2)
    return [hashlib.sha256(encode(samples, format, TAGS)).hexdigest() for format in FORMATS]


def test_seed_beyond_32_bits_still_makes_an_ogg_stream() -> None:
    """The last variations of the largest seed have seeds of 33 bits, and their files play."""
    tags = Tags(title="song", prompt="piano", seed=2**32 + 6, model="ace-step")

    file = encode(tones(0.5), "opus", tags)

    assert soundfile.info(io.BytesIO(file)).frames == 24_000


@pytest.mark.long
@pytest.mark.parametrize("format", FORMATS)
def test_ten_minutes_in_every_format(format: Format, capsys: pytest.CaptureFixture[str]) -> None:
    """The longest song, 600 s, is encoded whole, without libsndfile's crash on one long write of Vorbis."""
    samples = np.zeros((600 * SAMPLE_RATE, 2), np.float32)
    samples[: 5 * SAMPLE_RATE] = samples[-5 * SAMPLE_RATE :] = tones(5)  # silence between is quick to encode

    began = time.perf_counter()
    file = encode(samples, format, TAGS)
    took = time.perf_counter() - began

    with capsys.disabled():
        print(f" [{format}: {took:.1f} s, {len(file) / 1e6:.1f} MB]", end="")
    if format == "aac":
        assert edit_list(file) == (len(samples), 1024)
        return
    with soundfile.SoundFile(io.BytesIO(file)) as sound:
        assert sound.frames == len(samples)
        sound.seek(-2 * SAMPLE_RATE, soundfile.SEEK_END)
        assert np.abs(sound.read(SAMPLE_RATE) - samples[-2 * SAMPLE_RATE : -SAMPLE_RATE]).max() < 0.03


@pytest.mark.parametrize("format", ["wav", "wav32"])
def test_memory_is_the_file_and_little_more(format: Format) -> None:
    """Encoding a long song holds one copy of the file in memory, not two."""
    samples = tones(60)

    tracemalloc.start()
    try:
        file = encode(samples, format, TAGS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1.25 * len(file)


def test_audio_needs_no_torch() -> None:
    """Importing the module does not import torch."""
    program = "import sys, serve_app.audio; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

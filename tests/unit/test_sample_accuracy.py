"""Samples at both ends of a file in every format, read by a decoder that did not write it."""

import io

import numpy as np
import pytest
import soundfile
from mutagen.mp3 import MP3, BitrateMode

from serve_app.audio import encode
from serve_app.music import SAMPLE_RATE, Format
from tests.support.signals import (
    FORMATS,
    LOSSLESS,
    TAGS,
    Signal,
    by_edit_list,
    decoders,
    edit_list,
    errors,
    music,
    tones,
)


@pytest.mark.fault("C5", "C6")
@pytest.mark.parametrize("seconds", [1, 2.345, 7.00002])
@pytest.mark.parametrize("signal", [music, tones])
@pytest.mark.parametrize("format", FORMATS)
def test_samples_are_right_up_to_both_ends(format: Format, signal: Signal, seconds: float) -> None:
    """Every decoder returns the song's exact length, with no larger error at its ends than in its middle."""
    samples = signal(seconds)

    file = encode(samples, format, TAGS)

    # A tone that begins at once rings a little in a codec that is lossy: a thirtieth of it was the most measured.
    ringing = 0.0 if format in LOSSLESS else np.abs(samples).max() / 15
    for decode in decoders(format):
        played = decode(file)
        assert len(played) == len(samples)
        error = errors(played, samples)
        limit = 1.5 * error[100:-100].max() + ringing
        assert error[0] <= limit
        assert error[-2:].max() <= limit


@pytest.mark.fault("C5")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("frames", [1, 100, 1151, 1153])
def test_shortest_pieces_keep_their_length(format: Format, frames: int) -> None:
    """Pieces shorter than a codec's frame, or one sample off it, keep their number of samples."""
    samples = music(1)[:frames]

    file = encode(samples, format, TAGS)

    assert len(decoders(format)[0](file)) == frames


@pytest.mark.fault("C6")
def test_players_find_an_mp3s_length_and_its_middle_in_the_tag() -> None:
    """mutagen reads VBR and the exact length, and the seek table leads to the right byte."""
    samples = music(20)

    file = encode(samples, "mp3", TAGS)

    info = MP3(io.BytesIO(file)).info
    start = file.index(b"Xing") - 36
    table = file[start + 36 + 16 :][:100]
    assert (info.sketchy, info.bitrate_mode) == (False, BitrateMode.VBR)
    assert info.encoder_info.startswith("LAME 3.100")
    assert info.length == pytest.approx(20, abs=1e-6)
    assert list(table) == sorted(table)
    assert table[0] == 384 * 256 // (len(file) - start)
    assert table[50] == pytest.approx(128, abs=2)


@pytest.mark.fault("C10")
def test_an_m4a_can_be_played_before_all_of_it_is_there() -> None:
    """The index precedes the audio, and its offsets are right after tags were added."""
    samples = music(20)

    file = encode(samples, "aac", TAGS)

    assert file.index(b"moov") < file.index(b"mdat")
    assert edit_list(file) == (len(samples), 1024)
    assert errors(by_edit_list(file), samples).max() < 0.04


@pytest.mark.fault("C6")
def test_seeking_in_an_mp3_lands_on_the_sample() -> None:
    """A decoder that seeks to the last second returns exactly that second."""
    samples = music(20)
    file = encode(samples, "mp3", TAGS)

    with soundfile.SoundFile(io.BytesIO(file)) as sound:
        sound.seek(-SAMPLE_RATE, soundfile.SEEK_END)
        played = sound.read(dtype="float32")

    assert len(played) == SAMPLE_RATE
    assert errors(played, samples[-SAMPLE_RATE:]).max() < 0.04  # a quarter of the music's own

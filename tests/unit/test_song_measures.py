"""The measures with which benchmarks and the acceptance compare songs, on signals whose figures are known."""

import numpy as np
import pytest

from benchmarks.acceptance.levels import loudness_lufs, silent_share
from benchmarks.player import Samples
from benchmarks.sound import below, fidelity_db, onset_likeness, peak_db, timbre_distance_db
from serve_app.music import SAMPLE_RATE


def sine(hertz: float, level_db: float = -20.0, seconds: float = 4.0) -> Samples:
    """The same sine on both channels, with this peak."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = 10 ** (level_db / 20) * np.sin(2 * np.pi * hertz * time)
    return np.stack([wave, wave]).astype(np.float32)


def test_loudness_is_that_of_ebu_r_128() -> None:
    """A stereo sine of 997 Hz with a peak of -20 dBFS has -20 LUFS, as BS.1770 says; silence has the least there is."""
    assert loudness_lufs(sine(997)) == pytest.approx(-20.0, abs=0.1)
    assert loudness_lufs(np.zeros((2, SAMPLE_RATE), np.float32)) == -70.0


def test_levels_are_measured() -> None:
    """The peak of a sine, and the silent half of a song."""
    half_silent = np.concatenate([sine(440), np.zeros((2, 4 * SAMPLE_RATE), np.float32)], axis=1)

    assert peak_db(sine(440)) == pytest.approx(-20.0, abs=0.01)
    assert silent_share(half_silent) == pytest.approx(0.5, abs=0.02)


def test_the_error_of_a_copy_is_measured() -> None:
    """An equal copy has no error; one with another sine of a tenth of the amplitude has its error 20 dB below."""
    song = sine(440)
    copy = song + sine(5000, level_db=-40)

    assert fidelity_db(song, song) == float("inf")
    assert fidelity_db(copy, song) == pytest.approx(20.0, abs=0.01)
    assert fidelity_db(below(copy, 1200), below(song, 1200)) > 60


def test_timbres_are_compared_at_the_same_level() -> None:
    """A quieter song has the same timbre, and one that is a fourth higher has another."""
    assert timbre_distance_db(sine(440), sine(440, level_db=-30)) == pytest.approx(0.0, abs=0.1)
    assert timbre_distance_db(sine(440), sine(587)) > 10


def test_onsets_are_compared_in_time() -> None:
    """Notes at the same moments are alike, whatever their pitch; notes half a beat later are not."""
    beat = SAMPLE_RATE // 2
    decay = np.tile(np.exp(-np.arange(beat) / (beat / 8)), 4).astype(np.float32)
    pattern = sine(440, seconds=2) * decay
    other_pitch = sine(700, seconds=2) * decay

    assert onset_likeness(pattern, other_pitch) > 0.8
    assert onset_likeness(pattern, np.roll(other_pitch, beat // 2, axis=1)) < 0.3

"""What the toy model's evaluation hears in songs."""

from pathlib import Path

import numpy as np
import pytest

from miniature import measures
from miniature.clips import render_clip
from miniature.latents import SAMPLE_RATE
from miniature.listening import Probes, agreements, listen
from miniature.measures import Key
from miniature.pieces import compose

SECONDS = 8


def chord(frequencies_hz: list[float], *, bpm: float = 0) -> np.ndarray:
    """Sines as (2, samples); with a tempo, they are struck on every beat and decay."""
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    wave = 0.1 * np.sum([np.sin(2 * np.pi * frequency * time) for frequency in frequencies_hz], axis=0)
    if bpm:
        wave = wave * np.exp(-6 * (time % (60 / bpm)))
    return np.stack([wave, wave]).astype(np.float32)


A_MINOR_SCALE = [220.0 * 2 ** (step / 12) for step in (0, 2, 3, 5, 7, 8, 10, 0, 12, 3, 7)]


def test_pitch_classes_of_a_tone() -> None:
    """A tone's energy is in its pitch class, so in scales that have it and in no other."""
    classes = measures.pitch_classes(chord([440.0]))
    assert classes[9] > 0.95
    assert measures.in_scale(classes, Key("C", "major")) > 0.95
    assert measures.in_scale(classes, Key("G#", "major")) < 0.05


def test_the_key_of_a_scale() -> None:
    """A minor is heard in its notes with the tonic's chord weighted, and C major is its relative key."""
    heard = measures.heard_key(measures.pitch_classes(chord(A_MINOR_SCALE)))
    assert heard == Key("A", "minor")
    assert heard.relative == Key("C", "major")
    assert heard.relative.relative == heard


@pytest.mark.parametrize("bpm", [60, 90, 120, 160])
def test_the_tempo_of_a_pulse(bpm: int) -> None:
    """A pulse's tempo is heard within 4 %, or its half or double."""
    assert measures.tempo_is(measures.heard_bpm(chord([220.0], bpm=bpm)), bpm)


def test_another_tempo_is_wrong() -> None:
    """A tempo that is off by more than 4 %, and not half or double, does not count."""
    assert measures.tempo_is(61, 120)
    assert not measures.tempo_is(80, 120)
    assert not measures.tempo_is(126, 120)


def test_an_ending_is_silence_at_the_end() -> None:
    """Half a second of silence ends a song; a song that is cut, or pauses before its end, has no ending."""
    song = chord([220.0])
    ended = song.copy()
    ended[:, -SAMPLE_RATE // 2 :] = 0
    paused = ended.copy()
    paused[:, -SAMPLE_RATE // 10 :] = 0.1
    assert measures.ends(ended)
    assert not measures.ends(song)
    assert not measures.ends(paused)


def test_the_loudness_of_a_song_does_not_matter() -> None:
    """A song is heard the same at a quarter of its level."""
    song = render_clip(compose(3_000_001).facts)
    loud = listen(song)
    quiet = listen(song * np.float32(0.25))
    assert quiet.sounds == loud.sounds
    assert quiet.ending == loud.ending


def test_silence_is_refused() -> None:
    """Nothing can be heard in silence, and the error says so."""
    with pytest.raises(ValueError, match="silent"):
        listen(np.zeros((2, SAMPLE_RATE), np.float32))


def test_facts_of_unknown_clips_are_heard() -> None:
    """In clips that the probes were not fitted on, nearly every fact is heard, and chance is far below."""
    facts = [compose(3_000_000 + number).facts for number in range(16)]
    table = agreements([render_clip(clip) for clip in facts], facts)
    for name in ("instrument", "drums", "bass", "voice", "tempo", "ending"):
        assert table[name][0] > 0.85, name
    assert table["energy in scale"][0] > 0.9
    assert table["instrument"][1] < 0.4
    assert table["energy in scale"][1] < 0.75


def test_probes_are_kept_in_a_file(tmp_path: Path) -> None:
    """Saved probes give the same outputs."""
    random = np.random.default_rng(2)
    probes = Probes(random.random(5), random.random(5) + 1, random.random((11, 9)))
    probes.save(tmp_path / "probes.npz")
    statistics = random.random((3, 5))
    assert np.array_equal(Probes.load(tmp_path / "probes.npz").outputs(statistics), probes.outputs(statistics))

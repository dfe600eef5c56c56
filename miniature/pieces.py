"""Random pieces of music: what is known of a piece, and the notes of the clip that is cut from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from miniature.accompaniment import Stroke, accompaniment
from miniature.lyrics import Words, random_words
from miniature.synthesizer import VOICE, Note

CLIP_S = 10.24
"""The length of a clip: 256 latents."""
INSTRUMENTS = ("piano", "guitar", "strings", "flute", "organ", "music box")
TEMPOS = tuple(range(60, 161, 10))
KEYS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MOODS = ("calm", "lively")
SCALES: Mapping[str, tuple[int, ...]] = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Degrees of the scale, one chord a bar.
PROGRESSIONS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "major": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 3, 6, 2)),
}
# The track of ACE-Step on which an instrument plays; General MIDI counts a music box among the tuned percussion.
INSTRUMENT_TRACKS: Mapping[str, str] = {
    "piano": "keyboard",
    "guitar": "guitar",
    "strings": "strings",
    "flute": "woodwinds",
    "organ": "keyboard",
    "music box": "percussion",
}
TRACKS = ("vocals", "drums", "bass", *dict.fromkeys(INSTRUMENT_TRACKS.values()))

BEATS_A_BAR = 4
HIGHEST_PITCH = 85  # below 1.2 kHz, above which latents hold no pitch
SUNG_PITCHES = range(58, 71)
HIGH_INSTRUMENTS = ("flute", "music box")
ENDING_SHARE = 0.25
SUNG_SHARE = 0.25
WHOLE_PIECES_S = (5, 6, 7, 8, 9, 10)
CUT_PIECES_S = (12, 15, 20, 30, 45, 60, 120)
FINAL_SILENCE_S = 0.8  # from the last note's end, so that its release leaves half a second of silence
SHORTEST_FINAL_CHORD_S = 0.9


@dataclass(frozen=True)
class Facts:
    """What is known of a clip.

    `key` is the tonic, `mode` "major" or "minor". The clip begins `starts_at_s` after its piece, which is `piece_s` long.
    With `ending`, the piece ends inside the clip, with its last chord and silence. `lyrics` has the words that the clip
    sings, with their tags; `syllables` has each sung syllable and when it begins, in seconds of the clip.
    """

    instrument: str
    bpm: int
    key: str
    mode: str
    mood: str
    drums: bool
    bass: bool
    voice: bool
    lyrics: str
    syllables: tuple[tuple[str, float], ...]
    ending: bool
    starts_at_s: float
    piece_s: int
    seed: int


@dataclass(frozen=True)
class Piece:
    """A clip's facts and its notes, by track."""

    facts: Facts
    tracks: Mapping[str, list[Note]]


@dataclass(frozen=True)
class Style:
    """What is decided before a note is written."""

    instrument: str
    bpm: int
    tonic: int
    mode: str
    mood: str
    drums: bool
    bass: bool
    voice: bool
    progression: tuple[int, ...]
    ending: bool
    piece_s: int
    first_bar: int

    @property
    def beat_s(self) -> float:
        return 60 / self.bpm

    @property
    def bar_s(self) -> float:
        return BEATS_A_BAR * self.beat_s

    @property
    def calm(self) -> bool:
        return self.mood == "calm"

    @property
    def plays_until_s(self) -> float:
        """When the last chord of an ending begins; for other clips, the clip's end.

        The chord begins with the last half bar that leaves it long enough.
        """
        if not self.ending:
            return CLIP_S
        half_bar_s = self.bar_s / 2
        latest_s = self.piece_s - FINAL_SILENCE_S - SHORTEST_FINAL_CHORD_S
        return int(latest_s / half_bar_s) * half_bar_s

    def chord(self, bar: int) -> int:
        """The degree of a bar's chord."""
        return self.progression[(self.first_bar + bar) % len(self.progression)]

    def pitch(self, degree: int, octave: int) -> int:
        """A degree's MIDI number; the tonics of octave 0 are between F sharp 2 and F 3."""
        base = 48 + self.tonic if self.tonic < 6 else 36 + self.tonic
        pitch = base + 12 * (octave + degree // 7) + SCALES[self.mode][degree % 7]
        while pitch > HIGHEST_PITCH:
            pitch -= 12
        return pitch


def compose(seed: int) -> Piece:
    """The piece of a seed: always the same one."""
    random = np.random.default_rng(seed)
    return _composed(_style(random), random, seed)


def compose_song(seed: int, seconds: int) -> Piece:
    """A whole piece of `seconds`, with its first bar and its ending: always the same one for a seed and a length."""
    random = np.random.default_rng(seed)
    style = replace(_style(random), ending=True, piece_s=seconds, first_bar=0)
    return _composed(style, random, seed)


def _composed(style: Style, random: np.random.Generator, seed: int) -> Piece:
    tracks: dict[str, list[Note]] = {}
    melody = list(_melody(style, random))
    instrument = list(_accompaniment(style))
    words: Words | None = None
    if style.voice:
        words = random_words(len(melody), random)
        tracks["vocals"] = _sung(melody, words)
    else:
        instrument += melody
    tracks[INSTRUMENT_TRACKS[style.instrument]] = instrument
    if style.bass:
        tracks["bass"] = list(_bass(style))
    if style.drums:
        tracks["drums"] = list(_drums(style))
    return Piece(_facts(style, words, tracks.get("vocals", []), seed), tracks)


def _style(random: np.random.Generator) -> Style:
    mode = str(random.choice(["major", "minor"]))
    bpm = int(random.choice(TEMPOS))
    drums = bool(random.random() < 0.3)
    bass = bool(random.random() < (0.65 if drums else 0.3))
    ending = bool(random.random() < ENDING_SHARE)
    piece_s = int(random.choice(CUT_PIECES_S))
    if ending:
        # Ten seconds are what most clients ask for.
        piece_s = 10 if random.random() < 0.6 else int(random.choice(WHOLE_PIECES_S))
    bars = int((piece_s - CLIP_S) * bpm / 60 / BEATS_A_BAR)
    progressions = PROGRESSIONS[mode]
    return Style(
        instrument=str(random.choice(INSTRUMENTS)),
        bpm=bpm,
        tonic=int(random.integers(12)),
        mode=mode,
        mood=str(random.choice(MOODS)),
        drums=drums,
        bass=bass,
        voice=bool(random.random() < SUNG_SHARE),
        progression=progressions[random.integers(len(progressions))],
        ending=ending,
        piece_s=piece_s,
        first_bar=0 if ending or random.random() < 0.5 else int(random.integers(bars + 1)),
    )


def _facts(style: Style, words: Words | None, sung: list[Note], seed: int) -> Facts:
    return Facts(
        instrument=style.instrument,
        bpm=style.bpm,
        key=KEYS[style.tonic],
        mode=style.mode,
        mood=style.mood,
        drums=style.drums,
        bass=style.bass,
        voice=style.voice,
        lyrics=words.lyrics if words else "",
        syllables=tuple((note.syllable, round(note.onset_s, 3)) for note in sung),
        ending=style.ending,
        starts_at_s=round(style.first_bar * style.bar_s, 3),
        piece_s=style.piece_s,
        seed=seed,
    )


def _bars(style: Style) -> Iterator[tuple[int, float]]:
    """Yields the number and the start of each bar of the clip. The final chord of an ending does not count as a bar."""
    bar = 0
    while bar * style.bar_s < style.plays_until_s - 0.01:
        yield bar, bar * style.bar_s
        bar += 1


def _note(style: Style, sound: str, pitch: int, onset_s: float, *, beats: float, velocity: float) -> Iterator[Note]:
    """The note, if it begins before the last chord of an ending."""
    if onset_s < style.plays_until_s - 0.01:
        duration_s = min(beats * style.beat_s, style.plays_until_s - onset_s + (0 if style.ending else 1))
        yield Note(sound, pitch, onset_s, duration_s, velocity)


def _final_note(style: Style, sound: str, pitch: int, velocity: float) -> Iterator[Note]:
    """The note in the last chord of an ending."""
    if style.ending:
        duration_s = style.piece_s - FINAL_SILENCE_S - style.plays_until_s
        yield Note(sound, pitch, style.plays_until_s, duration_s, velocity)


def _melody(style: Style, random: np.random.Generator) -> Iterator[Note]:
    """One note after another, mostly by steps; a bar begins on a note of its chord. Written for the instrument."""
    octave = 2 if style.instrument in HIGH_INSTRUMENTS else 1
    degree = 0
    for bar, begin_s in _bars(style):
        chord = style.chord(bar)
        beat = 0.0
        while beat < BEATS_A_BAR:
            beats = min(_melody_beats(style, random), BEATS_A_BAR - beat)
            if beat == 0:
                degree = int(random.choice([chord, chord + 2, chord + 4])) % 7
            else:
                degree = int(np.clip(degree + random.choice([-2, -1, -1, 1, 1, 2]), 0, 9))
            onset_s = begin_s + beat * style.beat_s
            accent = 0.9 if beat % 1 == 0 else 0.7
            yield from _note(
                style, style.instrument, style.pitch(degree, octave), onset_s, beats=beats * 0.95, velocity=accent
            )
            beat += beats
    yield from _final_note(style, style.instrument, style.pitch(0, octave), 0.8)


def _melody_beats(style: Style, random: np.random.Generator) -> float:
    """The length of the next melody note: quarters and halves, or eighths and quarters if the piece is lively."""
    shorter = random.random() < (0.75 if style.calm else 0.6)
    return (1.0 if shorter else 2.0) * (1.0 if style.calm else 0.5)


def _sung(melody: list[Note], words: Words) -> list[Note]:
    """The melody for the voice: one syllable a note, in the voice's octave."""
    return [
        Note(VOICE, _sung_pitch(note.pitch), note.onset_s, note.duration_s, 0.9, syllable)
        for note, syllable in zip(melody, words.syllables, strict=True)
    ]


def _sung_pitch(pitch: int) -> int:
    return SUNG_PITCHES[0] + (pitch - SUNG_PITCHES[0]) % 12


def _accompaniment(style: Style) -> Iterator[Note]:
    strokes = accompaniment(style.instrument, calm=style.calm)
    for bar, begin_s in _bars(style):
        for stroke in strokes:
            yield from _chord_note(style, stroke, style.chord(bar), begin_s)
    for degree in (0, 2, 4):
        yield from _final_note(style, style.instrument, style.pitch(degree, strokes[0].octave), 0.4)


def _chord_note(style: Style, stroke: Stroke, chord: int, begin_s: float) -> Iterator[Note]:
    pitch = style.pitch(chord + stroke.degree, stroke.octave)
    onset_s = begin_s + stroke.beat * style.beat_s
    return _note(style, style.instrument, pitch, onset_s, beats=stroke.beats, velocity=stroke.velocity)


def _bass(style: Style) -> Iterator[Note]:
    """The chord's root, an octave below: every half bar, or every beat if the piece is lively."""
    step = 2 if style.calm else 1
    for bar, begin_s in _bars(style):
        pitch = style.pitch(style.chord(bar) % 7, -1)
        for beat in range(0, BEATS_A_BAR, step):
            yield from _note(style, "bass", pitch, begin_s + beat * style.beat_s, beats=step * 0.9, velocity=0.8)
    yield from _final_note(style, "bass", style.pitch(0, -1), 0.8)


def _drums(style: Style) -> Iterator[Note]:
    hat_step = 1.0 if style.calm else 0.5
    for _, begin_s in _bars(style):
        for beat in range(BEATS_A_BAR):
            drum = "snare" if beat % 2 else "kick"
            velocity = 0.7 if beat % 2 else 0.8
            yield from _note(style, drum, 0, begin_s + beat * style.beat_s, beats=1, velocity=velocity)
        for hat in range(int(BEATS_A_BAR / hat_step)):
            yield from _note(style, "hat", 0, begin_s + hat * hat_step * style.beat_s, beats=1, velocity=0.7)
    yield from _final_note(style, "kick", 0, 0.8)

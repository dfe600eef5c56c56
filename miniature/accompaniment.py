"""How each instrument accompanies a melody: what it plays in a bar, whatever the chord.

Something begins on every beat, and the bar's first beat is accented, so that the tempo is heard without drums.
"""

from dataclasses import dataclass

ACCENT = 1.4
TRIAD = (0, 2, 4)


@dataclass(frozen=True)
class Stroke:
    """A note of a bar. `degree` counts the scale's steps from the chord's root; `beat` and `beats` are in beats."""

    degree: int
    octave: int
    beat: float
    beats: float
    velocity: float


def accompaniment(instrument: str, *, calm: bool) -> list[Stroke]:
    """An instrument's strokes of one bar. Raises KeyError for an unknown instrument."""
    return _PATTERNS[instrument](calm)


def _piano(calm: bool) -> list[Stroke]:
    """Chords on every beat; a calm piece has them on every other, and the fifth between them."""
    if not calm:
        return [stroke for beat in range(4) for stroke in _chord(beat, 0.95, 0.35)]
    chords = [stroke for beat in (0, 2) for stroke in _chord(beat, 1.9, 0.35)]
    return chords + [Stroke(4, 0, beat, 0.95, 0.4) for beat in (1, 3)]


def _guitar(calm: bool) -> list[Stroke]:
    """Broken chords in quarters, or in eighths whose first of a pair is louder."""
    if calm:
        return [Stroke(degree, 0, beat, 1.5, _accented(beat, 0.55)) for beat, degree in enumerate((0, 2, 4, 2))]
    degrees = (0, 2, 4, 7, 4, 7, 4, 2)
    return [Stroke(degree, 0, i / 2, 1.5, _accented(i / 2, 0.55)) for i, degree in enumerate(degrees)]


def _sustained(calm: bool) -> list[Stroke]:
    """Chords struck anew on every beat; a calm piece holds the chord, and strikes only its root and fifth."""
    if not calm:
        return [stroke for beat in range(4) for stroke in _chord(beat, 0.8, 0.4)]
    held = [Stroke(degree, 0, 0, 3.9, 0.3) for degree in TRIAD]
    return held + [Stroke(degree, 0, beat, 0.8, _accented(beat, 0.35)) for beat in range(4) for degree in (0, 4)]


def _flute(calm: bool) -> list[Stroke]:
    """A low second flute: the chord's notes, one a beat, or two if the piece is lively."""
    if calm:
        return [Stroke(degree, 1, beat, 0.85, _accented(beat, 0.45)) for beat, degree in enumerate((0, 4, 2, 4))]
    degrees = (0, 4, 2, 4, 0, 4, 2, 4)
    return [Stroke(degree, 1, i / 2, 0.42, _accented(i / 2, 0.45)) for i, degree in enumerate(degrees)]


def _music_box(calm: bool) -> list[Stroke]:
    """Broken chords in quarters or in eighths, high."""
    degrees = (0, 4, 2, 4)
    step = 1.0 if calm else 0.5
    count = int(4 / step)
    return [Stroke(degrees[i % 4], 1, i * step, 1.0, _accented(i * step, 0.4)) for i in range(count)]


def _chord(beat: int, beats: float, velocity: float) -> list[Stroke]:
    return [Stroke(degree, 0, beat, beats, _accented(beat, velocity)) for degree in TRIAD]


def _accented(beat: float, velocity: float) -> float:
    """The velocity at a place of the bar: highest on the first beat, lowest between beats."""
    if beat == 0:
        return velocity * ACCENT
    return velocity if beat % 1 == 0 else velocity * 0.7


_PATTERNS = {
    "piano": _piano,
    "guitar": _guitar,
    "strings": _sustained,
    "organ": _sustained,
    "flute": _flute,
    "music box": _music_box,
}

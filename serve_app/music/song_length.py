"""The length of a song from its audio codes, or an estimate from its lyrics, for `duration: "auto"`.

The rules of the estimate:

* Lyrics are sung at 2.5 syllables per second. Each line takes a whole number of bars.
* Each section with lyrics takes one more bar, to breathe.
* A section tag without lyrics, such as [solo], takes 8 bars; [intro] and [outro] take 4.
* If a song starts with lyrics, 4 bars come before them. If it ends with lyrics, 4 bars follow.
* A song without lyrics and sections takes two minutes.

For a song that is planned, the planner chooses the length instead.
"""

import math
import re
import unicodedata
from typing import Final, NamedTuple

CODES_PER_S: Final = 5
"""Audio codes in one second of a song."""

INSTRUMENTAL_S: Final = 120
"""Length in seconds of a song without lyrics and sections."""

DEFAULT_BPM: Final = 100
DEFAULT_BEATS: Final = 4

_SHORTEST_S: Final = 10
_LONGEST_S: Final = 600
_SYLLABLES_PER_S: Final = 2.5
_SECTION_BARS: Final = 8
_EDGE_BARS: Final = 4
_BREATH_BARS: Final = 1

_TAG: Final = re.compile(r"\[([^\[\]\n]{0,200})\]")
_WORD: Final = re.compile(r"[^\W\d_]+|[0-9]+")
_VOWELS: Final = re.compile("[aeiouyæøœıαεηιουωаеиоуыэюяіє]+")
_SCRIPTS_WITH_VOWELS: Final = ("LATIN", "CYRILLIC", "GREEK")
_SCRIPTS_OF_SYLLABLES: Final = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "DEVANAGARI",
    "BENGALI",
    "TAMIL",
    "TELUGU",
    "GURMUKHI",
)


def codes_length_s(codes: int) -> float:
    """The length in seconds of a song that is as long as its audio codes, of which there are `codes`, from 1 to 600."""
    return min(max(codes / CODES_PER_S, 1.0), _LONGEST_S)


def song_length_s(lyrics: str, bpm: int | None = None, beats: int | None = None) -> int:
    """Estimate the length in whole seconds, from 10 to 600.

    `bpm` is the tempo in beats per minute (default: 100), `beats` the beats per bar (default: 4).
    """
    sections = _sections(lyrics)
    if not sections:
        return INSTRUMENTAL_S
    bar_s = (beats or DEFAULT_BEATS) * 60 / (bpm or DEFAULT_BPM)
    bars = sum(_section_bars(tag, lines, bar_s) for tag, lines in sections)
    bars += sum(_EDGE_BARS for _, lines in (sections[0], sections[-1]) if lines)
    return min(max(round(bars * bar_s), _SHORTEST_S), _LONGEST_S)


class TimedSection(NamedTuple):
    """A section of lyrics, and how much of a song it takes."""

    tag: str
    """In lower case and without brackets; may be empty."""
    lines: tuple[str, ...]
    seconds: float


def timed_sections(lyrics: str, duration_s: float) -> list[TimedSection]:
    """Share a song's length among the sections of its lyrics, by the rules of the estimate. Empty for an instrumental."""
    sections = _sections(lyrics)
    bar_s = DEFAULT_BEATS * 60 / DEFAULT_BPM
    bars = [_section_bars(tag, lines, bar_s) for tag, lines in sections]
    return [
        TimedSection(tag, tuple(lines), duration_s * share / sum(bars))
        for (tag, lines), share in zip(sections, bars, strict=True)
    ]


def _sections(lyrics: str) -> list[tuple[str, list[str]]]:
    """Each section's tag in lower case, and its lines that contain words. Empty if the lyrics are only [Instrumental]."""
    parts = ["", *_TAG.split(lyrics)]
    sections = []
    for tag, text in zip(parts[::2], parts[1::2], strict=True):
        lines = [line for line in text.splitlines() if _WORD.search(line)]
        if lines or tag.strip():
            sections.append((tag.strip().lower(), lines))
    only_tag = sections[0][0] if len(sections) == 1 and not sections[0][1] else ""
    return [] if only_tag in ("instrumental", "inst") else sections


def _section_bars(tag: str, lines: list[str], bar_s: float) -> int:
    if lines:
        return _BREATH_BARS + sum(math.ceil(syllables(line) / _SYLLABLES_PER_S / bar_s) for line in lines)
    return _EDGE_BARS if tag.startswith(("intro", "outro")) else _SECTION_BARS


def syllables(line: str) -> int:
    """Estimate the syllables of a line.

    Counts groups of vowels in scripts that write vowels, characters in scripts of syllables and in numbers, and half of the
    letters in all other scripts.
    """
    return sum(_syllables_of(word) for word in _WORD.findall(line))


def _syllables_of(word: str) -> int:
    script = unicodedata.name(word[0], "").partition(" ")[0]
    if script in _SCRIPTS_WITH_VOWELS:
        plain = "".join(unicodedata.normalize("NFD", letter)[0] for letter in word.lower())
        return max(1, len(_VOWELS.findall(plain)))
    if script in _SCRIPTS_OF_SYLLABLES or word[0].isdigit():
        return len(word)
    return math.ceil(len(word) / 2)

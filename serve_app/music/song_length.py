"""How long a song is that is asked for with `duration: "auto"`: a rule of thumb, until the model's own planner decides it.

Words are sung at 2.5 syllables a second. A line takes as many whole bars as it needs at that, a section of words one bar more to
breathe. A section tag without words under it, such as [solo], is 8 bars; [intro] and [outro] are 4, and so are the beginning and
the end of a song that has words there. Without words and sections it is two minutes.
"""

import math
import re
import unicodedata
from typing import Final

INSTRUMENTAL_S: Final = 120
"""Seconds of a song of which nothing is known but that it has no words."""

USUAL_BPM: Final = 100
USUAL_BEATS: Final = 4

_SHORTEST_S: Final = 10
_LONGEST_S: Final = 600
_SYLLABLES_A_SECOND: Final = 2.5
_SECTION_BARS: Final = 8
_EDGE_BARS: Final = 4
_BREATH_BARS: Final = 1

_TAG: Final = re.compile(r"\[([^\[\]\n]{0,200})\]")
_WORD: Final = re.compile(r"[^\W\d_]+|[0-9]+")
_VOWELS: Final = re.compile("[aeiouyæøœıαεηιουωаеиоуыэюяіє]+")
_WRITES_VOWELS: Final = ("LATIN", "CYRILLIC", "GREEK")
_LETTER_IS_SYLLABLE: Final = (
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


def song_length_s(lyrics: str, bpm: int | None = None, beats: int | None = None) -> int:
    """Whole seconds, from 10 to 600, for lyrics at so many beats a minute and in a bar; None: 100 and 4."""
    sections = _sections(lyrics)
    if not sections:
        return INSTRUMENTAL_S
    bar_s = (beats or USUAL_BEATS) * 60 / (bpm or USUAL_BPM)
    bars = sum(_section_bars(tag, lines, bar_s) for tag, lines in sections)
    bars += sum(_EDGE_BARS for _, lines in (sections[0], sections[-1]) if lines)
    return min(max(round(bars * bar_s), _SHORTEST_S), _LONGEST_S)


def _sections(lyrics: str) -> list[tuple[str, list[str]]]:
    """Each section's tag and its lines of words. [Instrumental] alone says that there are none."""
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
        return _BREATH_BARS + sum(math.ceil(syllables(line) / _SYLLABLES_A_SECOND / bar_s) for line in lines)
    return _EDGE_BARS if tag.startswith(("intro", "outro")) else _SECTION_BARS


def syllables(line: str) -> int:
    """About how many a line has: groups of vowels, characters where each is one, else half of the letters."""
    return sum(_syllables_of(word) for word in _WORD.findall(line))


def _syllables_of(word: str) -> int:
    script = unicodedata.name(word[0], "").partition(" ")[0]
    if script in _WRITES_VOWELS:
        plain = "".join(unicodedata.normalize("NFD", letter)[0] for letter in word.lower())
        return max(1, len(_VOWELS.findall(plain)))
    if script in _LETTER_IS_SYLLABLE or word[0].isdigit():
        return len(word)
    return math.ceil(len(word) / 2)

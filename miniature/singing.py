"""Where the lyrics of a clip are sung: each syllable's place in the text, its time, and the tokens that it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from miniature.pieces import Facts

LATENTS_A_SECOND = 25
LYRICS_HEADING = "# Lyric\n"
TAG_END = "]"
SHORTEST_NOTE_BEATS = 0.5

Span = tuple[int, int]
"""The first character of a part of a text, and the one after its last."""


@dataclass(frozen=True)
class Syllable:
    """A sung syllable: its place in the lyrics' text, and when it is sung, in seconds of the clip."""

    place: Span
    start_s: float
    end_s: float


def sung_syllables(facts: Facts, text: str) -> tuple[Syllable, ...]:
    """The syllables of a clip with a voice, in order. `text` is the lyrics' text that the model reads.

    A syllable is sung until the next one starts. The last one counts for the shortest note that pieces have.
    Raises ValueError if `text` lacks a syllable that is sung.
    """
    starts = [start_s for _, start_s in facts.syllables]
    ends = [*starts[1:], starts[-1] + SHORTEST_NOTE_BEATS * 60 / facts.bpm]
    after = text.index(TAG_END, text.index(LYRICS_HEADING)) + 1
    found = []
    for (syllable, start_s), end_s in zip(facts.syllables, ends, strict=True):
        first = text.index(syllable, after)
        after = first + len(syllable)
        found.append(Syllable((first, after), start_s, end_s))
    return tuple(found)


def sung_between(syllables: Sequence[Syllable], start_s: float, seconds: float) -> tuple[Syllable, ...]:
    """The syllables that are sung in a part of a clip, with their times in that part."""
    moved = (replace(each, start_s=each.start_s - start_s, end_s=each.end_s - start_s) for each in syllables)
    return tuple(
        replace(each, start_s=max(0.0, each.start_s)) for each in moved if each.end_s > 0 and each.start_s < seconds
    )


def tokens_of(syllable: Syllable, offsets: Sequence[Span]) -> list[int]:
    """The numbers of the tokens with a letter of the syllable. `offsets` has the place of each token in the text."""
    first, after = syllable.place
    return [number for number, (start, end) in enumerate(offsets) if start < after and first < end]


def lyrics_tokens(text: str, offsets: Sequence[Span]) -> slice:
    """The tokens of the lyrics, without those of the heading before them and of the mark at their end."""
    begin = text.index(LYRICS_HEADING) + len(LYRICS_HEADING)
    end = text.index("<|endoftext|>", begin)
    inside = [number for number, (start, _) in enumerate(offsets) if begin <= start < end]
    return slice(inside[0], inside[-1] + 1)


def sung_frames(syllables: Sequence[Syllable], offsets: Sequence[Span], frames: int) -> np.ndarray:
    """Which tokens each latent frame sings: (frames, tokens) of bool. A frame in which nothing is sung has none."""
    sung = np.zeros((frames, len(offsets)), np.bool_)
    for syllable in syllables:
        first = round(syllable.start_s * LATENTS_A_SECOND)
        after = round(syllable.end_s * LATENTS_A_SECOND)
        sung[first:after, tokens_of(syllable, offsets)] = True
    return sung

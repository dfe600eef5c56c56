"""The lyrics of a request as the model reads them, and how its finished songs follow them.

This file imports torch: import it only after `loading.import_packages`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serve_app.audio import Candidate, Song
from serve_app.engine.ace_step.alignment import Floats, lyric_score, token_times
from serve_app.engine.ace_step.alignment_heads import Heads
from serve_app.engine.ace_step.generating import lyrics_and_language, seeds, song_frames
from serve_app.engine.ace_step.lyric_attention import Part, attention_maps
from serve_app.engine.ace_step.sampling import Slot
from serve_app.music import FRAME_SAMPLES, MAX_LYRICS_TOKENS, SAMPLE_RATE, MusicRequest
from serve_app.music.lyric_text import Span, lines, tags
from serve_app.music.lyric_times import LineTime, WordTime

_HEADING: Final = "# Lyric\n"
"""What comes before the lyrics in the text that the model reads (`_format_prompt` in diffusers)."""

_SCORE_DIGITS: Final = 4
"""As in the original."""


@dataclass(frozen=True)
class SungLyrics:
    """How a song follows its lyrics."""

    score: float
    """From 0 to 1; 1 is best."""
    lines: tuple[LineTime, ...]


@dataclass(frozen=True)
class LyricTokens:
    """The tokens of the lyrics, without those of the heading before them and of the mark at their end."""

    lyrics: str
    places: tuple[Span, ...]
    """Where each token stands in `lyrics`."""
    first: int
    """The number of the first token among the model's conditions, which begin with the heading."""

    @property
    def conditions(self) -> slice:
        """Their places among the model's conditions."""
        return slice(self.first, self.first + len(self.places))

    @property
    def is_word(self) -> npt.NDArray[np.bool_]:
        """False for the tokens of section tags."""
        tagged = tags(self.lyrics)
        return np.array([not _overlaps_any(place, tagged) for place in self.places], np.bool_)


def _overlaps_any(place: Span, others: Sequence[Span]) -> bool:
    """Whether `place` overlaps one of `others`, which are in order and do not overlap each other."""
    number = bisect_right(others, place.start, key=lambda other: other.end)
    return number < len(others) and place.overlaps(others[number])


def lyric_tokens(pipe: Any, request: MusicRequest) -> LyricTokens:
    """Returns the tokens that the model reads of the request's lyrics."""
    lyrics, language = lyrics_and_language(request)
    _, text = pipe._format_prompt(request.prompt, lyrics, language)
    begin = text.index(_HEADING) + len(_HEADING)
    end = begin + len(lyrics)
    read = pipe.tokenizer(text, truncation=True, max_length=MAX_LYRICS_TOKENS, return_offsets_mapping=True)
    found = [(number, place) for number, place in enumerate(read["offset_mapping"]) if begin <= place[0] < end]
    places = tuple(Span(start - begin, stop - begin) for _, (start, stop) in found)
    return LyricTokens(lyrics, places, first=found[0][0])


def sung_lyrics(pipe: Any, request: MusicRequest, slot: Slot, seed: int, heads: Heads) -> SungLyrics:
    """Returns how the finished song of `seed` in `slot` follows the request's lyrics, which have words."""
    tokens = lyric_tokens(pipe, request)
    patch = pipe.transformer.config.patch_size
    frames = ceil(song_frames(request.duration) / patch)
    maps = attention_maps(pipe.transformer, heads, slot, seed, Part(tokens.conditions, frames))
    times = token_times(maps, patch * FRAME_SAMPLES / SAMPLE_RATE)
    score = round(lyric_score(maps, tokens.is_word), _SCORE_DIGITS)
    return SungLyrics(score, timed_lines(tokens, np.minimum(times, request.duration)))


def timed_lines(tokens: LyricTokens, times: Floats) -> tuple[LineTime, ...]:
    """Returns when each line and word is sung. `times` (tokens, 2) has each token's start and end in seconds.

    Words that the model did not read, because the lyrics are too long, are missing.
    """
    timed = []
    for line in lines(tokens.lyrics):
        words = [word for place in line.words if (word := _timed_word(tokens, place, times)) is not None]
        if words:
            timed.append(LineTime(line.text, words[0].start, words[-1].end, tuple(words)))
    return tuple(timed)


def _timed_word(tokens: LyricTokens, place: Span, times: Floats) -> WordTime | None:
    """Returns when the word at `place` is sung, or None if the model did not read it."""
    first = bisect_right(tokens.places, place.start, key=lambda token: token.end)
    last = bisect_left(tokens.places, place.end, key=lambda token: token.start) - 1
    if last < first:
        return None
    text = tokens.lyrics[place.start : place.end]
    return WordTime(text, _rounded(times[first, 0]), _rounded(times[last, 1]))


def _rounded(seconds: float) -> float:
    return round(float(seconds), 3)


def published(request: MusicRequest, sung: Sequence[SungLyrics]) -> Sequence[int]:
    """Returns the numbers of the songs that become files: all, or the first of those with the best score."""
    if request.best_of == 1:
        return range(request.variations)
    return [max(range(len(sung)), key=lambda number: sung[number].score)]


def with_lyrics(song: Song, request: MusicRequest, sung: Sequence[SungLyrics], number: int) -> Song:
    """Returns the song `number` with what the request asks for: its score, the times of its lyrics, the other candidates.

    `sung` has all songs that were played; none if the request does not ask.
    """
    if not sung:
        return song
    candidates = [Candidate(seed, each.score) for seed, each in zip(seeds(request), sung, strict=True)]
    return replace(
        song,
        lyric_score=sung[number].score,
        lyrics=sung[number].lines if request.lyrics_timing else None,
        candidates=tuple(candidates) if request.best_of > 1 else None,
    )

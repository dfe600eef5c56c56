"""The words of lyrics, apart from their section tags, and where they stand in the text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

_TAG: Final = re.compile(r"\[[^\]\n]*(\]|$)", re.MULTILINE)
"""A section tag such as [verse]. One that is not closed reaches to the end of its line."""

_SPACELESS: Final = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Kana and Han characters: Japanese and Chinese have no spaces, so each character counts as a word."""

_WORD: Final = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_LETTER: Final = re.compile(r"\w")


class Span(NamedTuple):
    """A part of a text: the numbers of its first character and of the one after its last."""

    start: int
    end: int

    def overlaps(self, other: "Span") -> bool:
        """Whether both have a character in common."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True)
class Line:
    """A line of lyrics without its tags, and the places of its words in the lyrics."""

    text: str
    words: tuple[Span, ...]


def tags(lyrics: str) -> list[Span]:
    """Returns the places of the section tags."""
    return [Span(*found.span()) for found in _TAG.finditer(lyrics)]


def lines(lyrics: str) -> Iterator[Line]:
    """Yields the lines that have words. A word is outside of tags and has a letter or a digit."""
    start = 0
    for line in _TAG.sub(lambda tag: " " * len(tag[0]), lyrics).splitlines(keepends=True):
        found = [word for word in _WORD.finditer(line) if _LETTER.search(word[0])]
        if found:
            yield Line(" ".join(line.split()), tuple(Span(start + word.start(), start + word.end()) for word in found))
        start += len(line)


def has_words(lyrics: str) -> bool:
    """Whether there is anything to sing. An instrumental has only tags, if anything."""
    return next(lines(lyrics), None) is not None

"""Words for the voice: made up of simple syllables, so that they are nobody's text."""

from dataclasses import dataclass

import numpy as np

CONSONANTS = "bdfghklmnprstvwz"
VOWELS = "aeiou"
LA_SHARE = 0.15
SYLLABLES_A_LINE = 8


@dataclass(frozen=True)
class Words:
    """Lyrics with their tag, and their syllables in order: `miniature.voice.syllables` gives the same ones."""

    lyrics: str
    syllables: tuple[str, ...]


def random_words(count: int, random: np.random.Generator) -> Words:
    """A verse with `count` syllables, in lines of about eight."""
    lines: list[str] = []
    line: list[str] = []
    sung: list[str] = []
    in_line = 0
    while len(sung) < count:
        word = _word(min(int(random.integers(1, 4)), count - len(sung)), random)
        line.append("".join(word))
        sung += word
        in_line += len(word)
        if in_line >= SYLLABLES_A_LINE:
            lines.append(" ".join(line))
            line = []
            in_line = 0
    if line:
        lines.append(" ".join(line))
    return Words("\n".join(["[verse]", *lines]), tuple(sung))


def _word(length: int, random: np.random.Generator) -> list[str]:
    if random.random() < LA_SHARE:
        return ["la"]
    return [_letter(CONSONANTS, random) + _letter(VOWELS, random) for _ in range(length)]


def _letter(letters: str, random: np.random.Generator) -> str:
    return letters[random.integers(len(letters))]

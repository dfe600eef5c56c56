"""When the lines and words of a song are sung, and the file that holds it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import floor


@dataclass(frozen=True, slots=True)
class WordTime:
    """When a word is sung, in seconds from the start of the song."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class LineTime:
    """When a line is sung, in seconds from the start of the song, and its words."""

    text: str
    start: float
    end: float
    words: tuple[WordTime, ...]


def to_file(lines: Sequence[LineTime]) -> bytes:
    """The JSON of a song's lines."""
    return json.dumps({"lines": [asdict(line) for line in lines]}, ensure_ascii=False).encode()


def from_file(file: bytes) -> tuple[LineTime, ...]:
    """The lines in a file. Raises ValueError, KeyError or TypeError if it is damaged."""
    return tuple(
        LineTime(line["text"], line["start"], line["end"], tuple(WordTime(**word) for word in line["words"]))
        for line in json.loads(file)["lines"]
    )


def to_lrc(lines: Sequence[LineTime]) -> str:
    """The lines as an LRC file: `[mm:ss.xx]`, minutes, seconds and hundredths, and the text."""
    return "".join(f"[{_clock(line.start)}]{line.text}\n" for line in lines)


def _clock(seconds: float) -> str:
    hundredths = floor(seconds * 100 + 0.5)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"

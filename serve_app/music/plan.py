"""What a planner decides about a song before it is rendered."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

from serve_app.config import Thinking as Thinking
from serve_app.music.vocabulary import Language

TimeSignature = Literal["2", "3", "4", "6"]

CODES_PER_SECOND: Final = 5
"""Audio codes in a second of music."""
CODES: Final = 64_000
"""How many different audio codes there are: 0 to 63,999."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Metadata of a job's songs, and the audio codes of each. Its fields, in this order, are the JSON that the database holds."""

    caption: str
    lyrics: str = ""
    bpm: int | None = None
    keyscale: str | None = None
    timesignature: TimeSignature | None = None
    duration: float | None = None
    """In seconds; 5 codes a second have this length."""
    language: Language = "unknown"
    instrumental: bool = False
    codes: tuple[tuple[int, ...], ...] = ()
    """For each song, `CODES_PER_SECOND` times `duration` numbers below `CODES`; empty if only metadata was planned."""
    seed: int | None = None
    """The seed of the plan; song i, counted from 0, has the codes of `seed` + i."""

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The plan that `to_json` gave. Fields that a later version has added are ignored."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        codes = tuple(tuple(song) for song in known.pop("codes", ()))
        return cls(**known, codes=codes)

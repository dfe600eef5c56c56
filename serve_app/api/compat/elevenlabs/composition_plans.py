"""ElevenLabs' composition plans: what a plan says as lyrics, and the plan that says what a song is like."""

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import ceil
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serve_app.music.song_length import timed_sections

_LONGEST_MS: Final = 600_000
_SHORTEST_SECTION_MS: Final = 3000
_LONGEST_SECTION_MS: Final = 120_000
"""The longest section of an instrumental that Sophia plans: ElevenLabs takes no longer one."""

_DIRECTION: Final = re.compile(r"\{([^{}\n]*)\}")
_LEADING_TAG: Final = re.compile(r"\s*\[([^\[\]\n]*)\]")


def not_offered(why: str) -> AfterValidator:
    """Refuses every value that asks for something that Sophia does not have."""

    def refuse(value: Any) -> Any:
        if value:
            raise ValueError(f"must be left out: {why}")
        return value

    return AfterValidator(refuse)


_Words = Annotated[str, StringConstraints(pattern=r"^[^\[\]\r\n\x00]*$")]
"""A text that can stand inside a section tag."""
Milliseconds = Annotated[int, Field(ge=_SHORTEST_SECTION_MS, le=_LONGEST_MS)]
"""The length of a song or of a section."""
_NoParts = Annotated[Any, not_offered("Sophia cannot make a song from parts of another one here; POST /v1/jobs can")]


class Body(BaseModel):
    """An object of a request. Fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid")


class _Section(Body):
    """A section of a plan for music_v1."""

    section_name: _Words = Field(min_length=1, max_length=100)
    positive_local_styles: list[_Words] = []
    negative_local_styles: list[_Words] = []
    duration_ms: Milliseconds
    lines: list[str] = []
    source_from: _NoParts = None

    def as_lyrics(self) -> str:
        """The section's tag, with its styles, and its lines."""
        return "\n".join([_tag(self.section_name, self.positive_local_styles), *self.lines])


class _Chunk(Body):
    """A section of a plan for music_v2."""

    text: str
    duration_ms: Milliseconds
    positive_styles: list[_Words] = []
    negative_styles: list[_Words] | None = None
    context_adherence: str | None = None
    conditioning_ref: _NoParts = None
    condition_strength: Any = None

    def as_lyrics(self, known_styles: Sequence[str]) -> str:
        """The text with its directions as tags, and with the styles that are not those of the whole song in its first tag."""
        styles = [style for style in self.positive_styles if style not in known_styles]
        text = _DIRECTION.sub(r"[\1]", self.text)
        tag = _LEADING_TAG.match(text)
        if not styles:
            return text
        if tag is None:
            return f"{_tag('', styles)}\n{text}"
        return _tag(tag[1], styles) + text[tag.end() :]


class CompositionPlan(Body):
    """What a song consists of: sections as of music_v1, or chunks as of music_v2."""

    positive_global_styles: list[str] = []
    negative_global_styles: list[str] = []
    sections: list[_Section] = []
    chunks: list[_Chunk] = []

    @model_validator(mode="after")
    def _is_one_song(self) -> Self:
        if bool(self.sections) == bool(self.chunks):
            raise ValueError("must have either sections or chunks")
        if not any(style.strip() for style in self.styles):
            field = "positive_global_styles" if self.sections else "positive_styles in its first chunk"
            raise ValueError(f"must have {field}, which say what the music is like")
        if self.duration_ms > _LONGEST_MS:
            raise ValueError(f"must be {_LONGEST_MS} ms long at most, but is {self.duration_ms} ms long")
        return self

    @property
    def styles(self) -> list[str]:
        """The styles of the whole song."""
        return self.positive_global_styles or (self.chunks[0].positive_styles if self.chunks else [])

    @property
    def duration_ms(self) -> int:
        """The length of the song."""
        return sum(section.duration_ms for section in self.sections) + sum(chunk.duration_ms for chunk in self.chunks)

    def as_lyrics(self) -> str:
        """The lyrics of the whole song, with section tags."""
        chunks = [chunk.as_lyrics(self.styles) for chunk in self.chunks]
        return "\n\n".join([*(section.as_lyrics() for section in self.sections), *chunks])

    def warnings(self) -> list[str]:
        """What of the plan has no effect."""
        negative = [
            *self.negative_global_styles,
            *(style for section in self.sections for style in section.negative_local_styles),
            *(style for chunk in self.chunks for style in chunk.negative_styles or ()),
        ]
        found = []
        if len(self.sections) + len(self.chunks) > 1:
            found.append("duration_ms of a section is ignored: the song is as long as all of them together.")
        if negative:
            found.append("negative styles are ignored: the model knows no styles to avoid.")
        if any(chunk.context_adherence or chunk.condition_strength for chunk in self.chunks):
            found.append("context_adherence and condition_strength are ignored: the song is made as a whole.")
        return found


def plan_view(model_id: str | None, styles: Sequence[str], lyrics: str, duration_s: float) -> dict[str, Any]:
    """The composition plan of a song, in the form of ElevenLabs' model."""
    parts = _parts(lyrics, round(1000 * duration_s))
    if model_id is None or not model_id.startswith("music_v2"):
        sections = [
            {
                "section_name": name,
                "positive_local_styles": [],
                "negative_local_styles": [],
                "duration_ms": duration_ms,
                "lines": list(lines),
            }
            for name, lines, duration_ms in parts
        ]
        return {"positive_global_styles": list(styles), "negative_global_styles": [], "sections": sections}
    chunks = [
        {"text": "\n".join([f"[{name}]", *lines]), "duration_ms": duration_ms, "positive_styles": list(styles)}
        for name, lines, duration_ms in parts
    ]
    return {"chunks": chunks}


def _parts(lyrics: str, duration_ms: int) -> list[tuple[str, Sequence[str], int]]:
    """The name, the lines and the length in ms of each section. Together they are as long as the song."""
    sections = timed_sections(lyrics, duration_ms / 1000)
    if len(sections) * _SHORTEST_SECTION_MS > duration_ms:  # too many for ElevenLabs' shortest section
        lines = [line for section in sections for line in section.lines]
        return [(sections[0].tag.capitalize() or "Verse", lines, duration_ms)]
    if not sections:
        count = ceil(duration_ms / _LONGEST_SECTION_MS)
        return [("Instrumental", (), length) for length in _whole([1.0] * count, duration_ms)]
    lengths = _whole([section.seconds for section in sections], duration_ms)
    return [
        (section.tag.capitalize() or "Verse", section.lines, length)
        for section, length in zip(sections, lengths, strict=True)
    ]


def _whole(weights: Sequence[float], total_ms: int) -> list[int]:
    """Share `total_ms` by weight, in whole numbers of at least `_SHORTEST_SECTION_MS` that add up to it."""
    free_ms = total_ms - _SHORTEST_SECTION_MS * len(weights)
    ends = [round(free_ms * end / sum(weights)) for end in accumulate(weights, initial=0.0)]
    return [_SHORTEST_SECTION_MS + end - start for start, end in pairwise(ends)]


def _tag(name: str, styles: Sequence[str]) -> str:
    """A section tag, with the styles of the section as ACE-Step takes them: `[Verse - soft, whispered]`."""
    return f"[{' - '.join(filter(None, (name, ', '.join(styles))))}]"

"""The fields of a request that edits a song: what its source is now, and how far the edit goes."""

from typing import Any, Final

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from serve_app.music.song_fields import MAX_LYRICS, MAX_PROMPT, TEXT
from serve_app.music.task_fields import check_task
from serve_app.music.vocabulary import MAX_VARIATIONS

_FIELDS: Final = ("source_prompt", "source_lyrics", "edit_start", "edit_end", "edit_draws")


class EditFields(BaseModel):
    """How the task `edit` turns a song into another one, by the difference between the words of both."""

    source_prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT,
        pattern=TEXT,
        description="For edit: what the source sounds like, as a prompt. `prompt` says what it becomes. Default: as `prompt`, so "
        "that only the lyrics change.",
        examples=["warm lo-fi piano"],
    )
    source_lyrics: str | None = Field(
        None,
        validate_default=True,
        max_length=MAX_LYRICS,
        pattern=TEXT,
        description="For edit: the lyrics of the source. `lyrics` says what is sung instead. Default: as `lyrics`.",
        examples=["[verse]\nRain on the window"],
    )
    edit_start: float = Field(
        0.0,
        ge=0,
        le=1,
        description="For edit: the share of the steps to skip at the start, from 0 to 1. The more are skipped, the closer the song "
        "stays to its source. Default: 0.",
        examples=[0.2],
    )
    edit_end: float = Field(
        1.0,
        validate_default=True,
        ge=0,
        le=1,
        description="For edit: the share of the steps after which editing ends. The rest is sampled with the new words alone, "
        "which follows them more closely. Default: 1.",
        examples=[0.8],
    )
    edit_draws: int = Field(
        1,
        ge=1,
        le=8,
        description="For edit: how many times each step is computed, each time with different noise, and averaged. More draws make "
        "the edit steadier and take that much longer. Each draw counts as a song in limits and costs, so `edit_draws` times "
        "`variations` must be at most 8. Default: 1.",
        examples=[3],
    )

    @field_validator(*_FIELDS)
    @classmethod
    def _belongs_to_edit(cls, value: Any, info: ValidationInfo) -> Any:
        check_task(cls, value, info, ("edit",))
        return value

    @field_validator("edit_draws")
    @classmethod
    def _counts_as_songs(cls, value: int, info: ValidationInfo) -> int:
        variations = info.data.get("variations", 1)
        if value > 1 and value * variations > MAX_VARIATIONS:
            raise ValueError(
                f"times variations must be at most {MAX_VARIATIONS}; here it is {value} times {variations}"
            )
        return value

    @field_validator("source_lyrics")
    @classmethod
    def _some_words_of_the_source(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("task_type") == "edit" and value is None and info.data.get("source_prompt") is None:
            raise ValueError(
                "is required, unless source_prompt is given, because task_type 'edit' makes the difference between the source's "
                "words and the new ones"
            )
        return value

    @field_validator("edit_end")
    @classmethod
    def _end_lies_after_start(cls, value: float, info: ValidationInfo) -> float:
        start = info.data.get("edit_start", 0.0)
        if info.data.get("task_type") == "edit" and value <= start:
            raise ValueError(f"must be greater than edit_start, which is {start:g}")
        return value

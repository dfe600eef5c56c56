"""The fields of a request that ask how a song follows its lyrics."""

from typing import Any, Final

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from serve_app.music.lyric_text import has_words

MAX_CANDIDATES: Final = 8


class LyricFields(BaseModel):
    """When the words are sung, and which of several songs follows them best."""

    lyrics_timing: bool = Field(
        False,
        description="Whether to find when each line and word of the lyrics is sung; GET /v1/jobs/{id}/lyrics has the result, and "
        "`lyric_score` in the job's `audio` says how closely the song follows its lyrics. It takes the time of one more step, and "
        "up to a few seconds for long lyrics. Only for models whose `aligns_lyrics` in GET /v1/models is true. Default: false.",
        examples=[False],
    )
    best_of: int = Field(
        1,
        ge=1,
        le=MAX_CANDIDATES,
        description="How many songs the model makes, from 1 to 8, of which you get the one with the best `lyric_score`. "
        "They have the seeds `seed`, `seed` + 1 and so on; `candidates` in the job's `audio` has the seed and score of each. All "
        "of them count in limits and costs. It needs lyrics, one variation, and a model whose `aligns_lyrics` in GET /v1/models "
        "is true. Default: 1.",
        examples=[1],
    )

    @field_validator("lyrics_timing", "best_of")
    @classmethod
    def _needs_lyrics(cls, value: Any, info: ValidationInfo) -> Any:
        if value == cls.model_fields[str(info.field_name)].default:
            return value
        if info.data.get("task_type") == "stems":
            raise ValueError("cannot be used with task_type 'stems', whose songs are tracks of a song")
        lyrics = info.data.get("lyrics")
        if lyrics is not None and not has_words(lyrics):
            raise ValueError("needs lyrics with words; section tags such as [verse] are not sung")
        return value

    @field_validator("best_of")
    @classmethod
    def _one_variation(cls, value: int, info: ValidationInfo) -> int:
        variations = info.data.get("variations", 1)
        if value > 1 and variations > 1:
            raise ValueError(f"gives one song, so variations must be 1; it is {variations}")
        draws = info.data.get("edit_draws", 1)
        if draws > 1 and value * draws > MAX_CANDIDATES:
            raise ValueError(f"times edit_draws must be at most {MAX_CANDIDATES}; here it is {value} times {draws}")
        return value

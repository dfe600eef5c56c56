"""The fields of a request that say what a planner decides about the song, and how."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from serve_app.music import spellings
from serve_app.music.plan import CODES, CODES_PER_SECOND, Thinking
from serve_app.music.song_fields import FASTEST_BPM, LONGEST_S, MAX_LYRICS, MAX_PROMPT, SLOWEST_BPM, TEXT
from serve_app.music.task_fields import MAX_CODES, check_task
from serve_app.music.vocabulary import MAX_SEED, MAX_VARIATIONS, Language, TaskType

PLANNED_TASKS: Final[tuple[TaskType, ...]] = ("text2music", "lego", "complete")
"""The tasks that the original plans. What the others make is decided by their source."""

JOB_PLAN: Final = r"^job:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
"""The name of an earlier job, whose plan is meant."""
_INSTEAD: Final = "Instead of what the planner would choose, or the plan of `job` says."

Code = Annotated[int, Field(ge=0, lt=CODES)]
SongCodes = Annotated[list[Code], Field(min_length=1, max_length=MAX_CODES)]


class GivenPlan(BaseModel):
    """A plan that a request brings: that of an earlier job, a written one, or an earlier one with changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    job: str | None = Field(
        None,
        pattern=JOB_PLAN,
        description="`job:ID` takes the plan of one of your jobs. The fields beside it replace those of that plan.",
        examples=["job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"],
    )
    caption: str | None = Field(
        None, min_length=1, max_length=MAX_PROMPT, pattern=TEXT, description=_INSTEAD, examples=["warm lo-fi piano"]
    )
    lyrics: str | None = Field(None, max_length=MAX_LYRICS, pattern=TEXT, description=_INSTEAD, examples=["[verse]"])
    bpm: int | None = Field(None, ge=SLOWEST_BPM, le=FASTEST_BPM, description=_INSTEAD, examples=[92])
    keyscale: str | None = Field(
        None, pattern=r"^[A-G][#b♯♭]? (major|minor)$", description=_INSTEAD, examples=["C major"]
    )
    timesignature: Literal["2", "3", "4", "6"] | None = Field(None, description=_INSTEAD, examples=["4"])
    duration: float | None = Field(
        None,
        ge=1,
        le=LONGEST_S,
        description="Length in seconds. With `codes`, five of them are one second.",
        examples=[30],
    )
    language: Language | None = Field(None, description="Language of the lyrics.", examples=["en"])
    instrumental: bool | None = Field(None, description="Whether nothing is sung.", examples=[False])
    codes: list[SongCodes] | None = Field(
        None,
        max_length=MAX_VARIATIONS,
        description="The audio codes of each song, five a second, from 0 to 63,999; also as ACE-Step's text "
        "`<|audio_code_N|><|audio_code_M|>…`. Without them, or with an empty list, `thinking: codes` plans them.",
        examples=[[[1234, 5678]]],
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="The `plan_seed` that the plan was made with.", examples=[7]
    )

    @field_validator("bpm", "duration", "seed", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return spellings.number(value)

    @field_validator("keyscale", mode="before")
    @classmethod
    def _keyscale(cls, value: Any) -> Any:
        return spellings.keyscale(value)

    @field_validator("timesignature", mode="before")
    @classmethod
    def _timesignature(cls, value: Any) -> Any:
        return None if value is None else spellings.timesignature(value)

    @field_validator("caption", "lyrics", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return spellings.text(value)

    @field_validator("codes", mode="before")
    @classmethod
    def _codes(cls, value: Any) -> Any:
        songs = [value] if isinstance(value, str) else value
        return [spellings.audio_codes(song) for song in songs] if isinstance(songs, list) else songs

    @field_validator("codes")
    @classmethod
    def _five_a_second(cls, songs: list[list[int]] | None, info: ValidationInfo) -> list[list[int]] | None:
        if not songs:
            return None
        lengths = {len(song) for song in songs}
        if len(lengths) > 1:
            raise ValueError(f"must have the same length for each song, but have from {min(lengths)} to {max(lengths)}")
        duration = info.data.get("duration")
        if duration is not None and codes_in(duration) not in lengths:
            raise ValueError(
                f"must be {codes_in(duration)} for each song, {CODES_PER_SECOND} for each second of the duration of "
                f"{duration:g} s, but are {len(songs[0])}"
            )
        return songs

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(value is None for value in self.__dict__.values()):
            raise ValueError("must have at least one field, such as 'job' or 'caption'")
        return self


def codes_in(seconds: float) -> int:
    """How many audio codes a song of this length has."""
    return int(seconds * CODES_PER_SECOND)


class PlanFields(BaseModel):
    """What a planner, a language model, decides before the song is rendered."""

    thinking: Thinking | None = Field(
        None,
        description="What the model's planner decides before the song is rendered: none; metadata (tempo, key, time signature and "
        "language where the request has none, a fuller caption and, with `duration: auto`, the length); or codes (also the "
        "song's audio codes, which the model then plays as a cover). Also true for codes and false for none, as in ACE-Step. "
        "Only for models with a `planner` in GET /v1/models; its `thinking` is the default. Tasks with a source are not planned, "
        "but for lego and complete, whose metadata is.",
        examples=["codes"],
    )
    plan: GivenPlan | None = Field(
        None,
        description="A plan to use instead of making one: `job:ID` for that of one of your jobs, a plan as GET "
        "/v1/jobs/{job_id}/plan and POST /v1/plan return it, or an object with some of its fields. The request's own fields count "
        "more. Without codes it only fills in fields of the request.",
        examples=["job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"],
    )
    auto_duration: bool = Field(
        False,
        description="Whether the length is chosen for you, and `duration` is the longest that it may be: the planner chooses it if "
        "the song is planned, and `duration` counts in limits until then; else it is estimated from the lyrics. `duration: auto` "
        "means true, with 600 s. Default: false.",
        examples=[False],
    )
    plan_caption: bool = Field(
        True,
        description="Whether the song is rendered from the planner's caption instead of `prompt`. Default: true, as in ACE-Step.",
        examples=[True],
    )
    plan_language: bool = Field(
        True,
        description="Whether the planner may choose the language of the lyrics. Default: true, unless the request has a "
        "`vocal_language`.",
        examples=[True],
    )
    plan_seed: int | None = Field(
        None,
        ge=-1,
        le=MAX_SEED,
        description="Seed of the plan. Variation i, counted from 0, has the codes of `plan_seed` + i. The same request with the "
        "same seeds gives the same song. Default: `seed`; -1: a random seed. The job's `request` contains it.",
        examples=[7],
    )
    plan_temperature: float = Field(
        0.85,
        ge=0,
        le=2,
        description="How freely the planner chooses, from 0 (always what is most likely) to 2. Default: 0.85.",
        examples=[0.85],
    )
    plan_guidance: float = Field(
        2.0,
        ge=1,
        le=10,
        description="Strength of the planner's classifier-free guidance, from 1 (none, and twice as fast) to 10. Default: 2.",
        examples=[2.0],
    )
    plan_top_k: int = Field(
        0,
        ge=0,
        le=CODES,
        description="The planner chooses among so many of the most likely tokens; 0 is all. Default: 0.",
        examples=[0],
    )
    plan_top_p: float = Field(
        0.9,
        ge=0.1,
        le=1,
        description="The planner chooses among the most likely tokens that together have this probability. Default: 0.9.",
        examples=[0.9],
    )
    plan_negative_prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT,
        pattern=TEXT,
        description="What the planner's guidance leads away from, as a prompt. Default: nothing in particular.",
        examples=["distorted guitars"],
    )

    @field_validator("thinking", mode="before")
    @classmethod
    def _thinking(cls, value: Any) -> Any:
        return spellings.thinking(value)

    @field_validator("thinking")
    @classmethod
    def _codes_come_from_one_side(cls, value: Thinking | None, info: ValidationInfo) -> Thinking | None:
        if value == "codes" and info.data.get("audio_codes") is not None:
            raise ValueError("must be 'none' or 'metadata', because the request has audio_codes")
        return value

    @field_validator("plan", mode="before")
    @classmethod
    def _job_alone(cls, value: Any) -> Any:
        return {"job": value} if isinstance(value, str) else value

    @field_validator("plan")
    @classmethod
    def _belongs_to_planned_task(cls, value: GivenPlan | None, info: ValidationInfo) -> GivenPlan | None:
        check_task(cls, value, info, PLANNED_TASKS)
        if value is not None and value.codes and info.data.get("audio_codes") is not None:
            raise ValueError("must have no codes, because the request has audio_codes")
        return value

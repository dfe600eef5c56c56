"""The fields of a request that say what is done, and with which part of the source."""

from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from serve_app.music import spellings
from serve_app.music.song_length import CODES_PER_S
from serve_app.music.vocabulary import SOURCE_TASKS, ChunkMaskMode, RepaintMode, TaskType, Track

MAX_CODES: Final = 600 * CODES_PER_S
"""The codes of the longest song."""

_FIELD_TASKS: Final[dict[str, tuple[TaskType, ...]]] = {
    "repaint_start": ("repaint", "lego"),
    "repaint_end": ("repaint", "lego"),
    "repaint_mode": ("repaint",),
    "repaint_strength": ("repaint",),
    "extend_before": ("repaint",),
    "extend_after": ("repaint",),
    "cover_strength": ("text2music", *(task for task in SOURCE_TASKS if task not in ("stems", "edit"))),
    "cover_noise_strength": ("cover", "cover-nofsq"),
    "track": ("extract", "lego"),
    "tracks": ("complete", "stems"),
    "audio_codes": ("text2music",),
}
"""The tasks that each field belongs to."""


class TaskFields(BaseModel):
    """What is done: a song from words alone, or one made from another song."""

    task_type: TaskType = Field(
        "text2music",
        description="Kind of generation. text2music makes a song from words. The others make one from `source`: cover (the "
        "same music played in another way), cover-nofsq (the same, nearer to the source), repaint (a part of it anew, or "
        "more before or after it), with base and sft models edit (the same with other words, see `source_prompt`) and, with base "
        "models, extract (one track of it), lego (one track to it), complete (more tracks to it) and stems (each of its tracks in "
        "a file). A song from a source is as long as the source. GET "
        "/v1/models lists each model's tasks.",
        examples=["text2music"],
    )
    repaint_start: float | None = Field(
        None,
        ge=0,
        le=600,
        description="Where the part to repaint starts, in seconds of the source; for lego, where the track plays. Default: "
        "at its start.",
        examples=[10.0],
    )
    repaint_end: float | None = Field(
        None,
        ge=0,
        le=600,
        description="Where the part to repaint ends, in seconds of the source. Default: at its end.",
        examples=[20.0],
    )
    repaint_mode: RepaintMode = Field(
        "balanced",
        description="How strongly the new part is bound to the rest: conservative, balanced (as `repaint_strength` says) or "
        "aggressive (not at all). In every mode, the samples outside the part are those of the source. Default: balanced.",
        examples=["balanced"],
    )
    repaint_strength: float = Field(
        0.5,
        ge=0,
        le=1,
        description="For repaint_mode balanced: from 0 (as conservative) to 1 (as aggressive). Default: 0.5.",
        examples=[0.5],
    )
    extend_before: float = Field(
        0.0,
        ge=0,
        le=600,
        description="For repaint: seconds to add before the source, rounded to 0.04. Default: 0.",
        examples=[10.0],
    )
    extend_after: float = Field(
        0.0,
        ge=0,
        le=600,
        description="For repaint: seconds to add after the source. Default: 0. If a request extends and has neither "
        "repaint_start nor repaint_end, the whole source is kept.",
        examples=[30.0],
    )
    cover_strength: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the steps, from the first on, in which the model hears the source (or the audio codes); in the "
        "rest it continues from the words alone. Default: 1.",
        examples=[0.7],
    )
    cover_noise_strength: float = Field(
        0.0,
        ge=0,
        le=1,
        description="For covers: how much of the source is in what sampling starts from. 0 starts from noise, 1 nearly from "
        "the source. Default: 0.",
        examples=[0.3],
    )
    track: Track | None = Field(
        None,
        description="The track that extract takes out, or that lego adds. Default: the model chooses.",
        examples=["drums"],
    )
    tracks: list[Track] | None = Field(
        None,
        min_length=1,
        max_length=len(get_args(Track)),
        description="The tracks that complete adds (default: the model chooses), or that stems takes out (default: all).",
        examples=[["vocals", "drums", "bass"]],
    )
    audio_codes: list[Annotated[int, Field(ge=0, le=spellings.LARGEST_CODE)]] | None = Field(
        None,
        min_length=1,
        max_length=MAX_CODES,
        description="For text2music: the song's audio codes, five for each second, of which the model makes a cover. GET "
        "/v1/jobs/{id}/codes has those of an earlier song. Also as ACE-Step's text, `<|audio_code_N|><|audio_code_M|>…`. Without "
        "`duration`, or with `auto`, the song is as long as its codes, and at least one second. If it is shorter, the remaining "
        "codes are ignored; if it is longer, it ends in silence.",
        examples=[[1234, 5678]],
    )
    chunk_mask_mode: ChunkMaskMode | None = Field(
        None,
        description="How the model is told which frames are new: explicit (1 for new, 0 for kept) or auto (2 for all: the "
        "model decides). Default: explicit where a part is named and for the packaged models, else auto, as in the original.",
        examples=["explicit"],
    )

    @field_validator("audio_codes", mode="before")
    @classmethod
    def _codes(cls, value: Any) -> Any:
        return spellings.audio_codes(value)

    @field_validator(*_FIELD_TASKS)
    @classmethod
    def _belongs_to_task(cls, value: Any, info: ValidationInfo) -> Any:
        check_task(cls, value, info, _FIELD_TASKS[str(info.field_name)])
        return value

    @field_validator("repaint_end")
    @classmethod
    def _ends_after_start(cls, value: float | None, info: ValidationInfo) -> float | None:
        start = info.data.get("repaint_start") or 0.0
        if value is not None and value <= start:
            raise ValueError(f"must be greater than repaint_start, which is {start:g}")
        return value

    @field_validator("tracks")
    @classmethod
    def _each_once(cls, value: list[Track] | None) -> list[Track] | None:
        return None if value is None else list(dict.fromkeys(value))

    @field_validator("task_type")
    @classmethod
    def _one_song_a_track(cls, value: TaskType, info: ValidationInfo) -> TaskType:
        if value == "stems" and info.data.get("variations", 1) > 1:
            raise ValueError("'stems' makes one song for each track, so variations must be 1")
        return value


def is_field_of(field: str, task: str) -> bool:
    """Whether a request with this task may have the field."""
    return task in _FIELD_TASKS.get(field, (task,))


def check_task(model: type[BaseModel], value: Any, info: ValidationInfo, tasks: tuple[TaskType, ...]) -> None:
    """Raise ValueError for a field that belongs to `tasks`, of which the request's is none, unless it has its default."""
    task = info.data.get("task_type")
    if task is not None and task not in tasks and value != model.model_fields[str(info.field_name)].default:
        raise ValueError(f"belongs to task_type {_either(tasks)}; this request's task_type is {task!r}")


def _either(names: tuple[str, ...]) -> str:
    """The names as in `'a', 'b' or 'c'`."""
    *first, last = (repr(name) for name in names)
    return f"{', '.join(first)} or {last}" if first else last

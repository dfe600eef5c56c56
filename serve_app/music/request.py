"""`MusicRequest`: the parameters of a song, with their bounds and defaults.

It does not depend on HTTP: the API, the worker, the engine and the command line all use it.
"""

from typing import Annotated, Any, Final, get_args

from pydantic import (
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    field_validator,
    model_validator,
)

from serve_app.config.models import ADAPTER_NAME
from serve_app.music import spellings
from serve_app.music.adapter_fields import AdapterFields
from serve_app.music.audio_fields import AudioFields, input_of, song_of
from serve_app.music.edit_fields import EditFields
from serve_app.music.lyric_fields import LyricFields
from serve_app.music.plan_fields import JOB_PLAN, PlanFields
from serve_app.music.sampling_fields import SamplingFields
from serve_app.music.song_fields import LONGEST_S, TEXT, SongFields
from serve_app.music.song_length import codes_length_s, song_length_s
from serve_app.music.task_fields import TaskFields
from serve_app.music.vocabulary import AUDIO_FIELDS, SOURCE_TASKS, Track

# Scheme, host name or address, port and path. webhook_sender.check_url checks what a pattern cannot.
_WEBHOOK_URL = r"^https?://([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?([/?][!-~]*)?$"


_NUMBERS: Final = (
    "variations", "seed", "bpm", "steps", "guidance_scale", "shift", "cfg_interval_start", "cfg_interval_end",
    "priority", "deadline_s", "run_limit_s", "fade_in", "fade_out", "retake_variance", "retake_seed", "dcw_strength",
    "dcw_high_strength", "repaint_start", "repaint_end", "repaint_strength", "extend_before", "extend_after",
    "cover_strength", "cover_noise_strength", "best_of", "edit_start", "edit_end", "edit_draws", "plan_seed",
    "plan_temperature", "plan_guidance", "plan_top_k", "plan_top_p",
)  # fmt: skip
_CHOICES: Final = (
    "format",
    "vocal_language",
    "sampler",
    "guidance_mode",
    "dcw_mode",
    "task_type",
    "repaint_mode",
    "track",
    "chunk_mask_mode",
)
_SWITCHES: Final = ("dcw", "keep_latents", "lyrics_timing", "auto_duration", "plan_caption", "plan_language")
_UNSETTABLE: Final = ("bpm", "keyscale", "timesignature", "audio_codes")
"""Fields for which `spellings.UNSET` means that they are left out."""


class MusicRequest(
    PlanFields, LyricFields, AudioFields, AdapterFields, EditFields, TaskFields, SamplingFields, SongFields
):
    """A request for one song, in one or several variations. Only `prompt` is required."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = Field(
        None,
        description="Model that generates the song; GET /v1/models lists them. Default: the service's default model.",
        examples=["ace-step"],
    )
    priority: int = Field(
        5,
        ge=0,
        le=9,
        description="Order among your own jobs for the same model: 9 starts first, 0 last. Default: 5. It does not affect the "
        "order between API keys, which take turns, unless the operator has created a key that outranks others.",
        examples=[5],
    )
    deadline_s: float | None = Field(
        None,
        ge=1,
        le=604_800,
        description="Maximum time from submission to the end of the job, in seconds, including its time in the queue. A job that "
        "takes longer becomes `expired`. Default: 3600, unless the operator has set another value.",
        examples=[600],
    )
    run_limit_s: float | None = Field(
        None,
        ge=1,
        le=604_800,
        description="Maximum time of one attempt, in seconds, without its time in the queue. A job that takes longer fails as "
        "`run_limit_exceeded`. Default: the operator's `queue.run_limit_s`, which a larger value does not exceed.",
        examples=[300],
    )
    webhook_url: str | None = Field(
        None,
        max_length=2000,
        pattern=_WEBHOOK_URL,
        description="URL to which Sophia POSTs the job when it has ended. The request is signed according to Standard Webhooks "
        "(standardwebhooks.com). Its `type` is `job.` followed by the state, and its `data` is the job. Sophia retries for hours "
        "until the receiver answers with 2xx, and does not follow redirects. It refuses private addresses unless the operator "
        "allows them.",
        examples=["https://example.com/hooks/sophia"],
    )
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=TEXT)],
        Annotated[str, StringConstraints(max_length=512, pattern=TEXT)],
    ] = Field(
        default_factory=dict,
        max_length=32,
        description="Your own names and values, at most 32. Sophia returns them with the job and does not use them.",
        examples=[{"project": "rainy-day"}],
    )

    @property
    def inputs(self) -> frozenset[str]:
        """The ids of the uploaded recordings that the request names."""
        named = (input_of(getattr(self, field)) for field in AUDIO_FIELDS)
        return frozenset(sha256 for sha256 in named if sha256 is not None)

    @property
    def source_jobs(self) -> frozenset[str]:
        """The ids of the jobs of which the request names songs."""
        named = (song_of(getattr(self, field)) for field in AUDIO_FIELDS)
        return frozenset(song.job for song in named if song is not None)

    @property
    def stems(self) -> tuple[Track, ...]:
        """The tracks that the task `stems` makes a song of each; empty for other tasks."""
        return tuple(self.tracks or get_args(Track)) if self.task_type == "stems" else ()

    @property
    def edits(self) -> bool:
        """Whether the song is an edit of its source."""
        return self.task_type == "edit"

    @property
    def songs(self) -> int:
        """How many songs the job makes: one for each variation, or for each track of the task `stems`."""
        return len(self.stems) or self.variations

    @property
    def needs_alignment(self) -> bool:
        """Whether it must be found how the songs follow their lyrics."""
        return self.lyrics_timing or self.best_of > 1

    @property
    def played_songs(self) -> int:
        """How many songs the model plays for the job: `songs`, or the candidates of which the best one is published.

        Each draw of an edit counts as a song, because it takes as long.
        """
        return max(self.songs, self.best_of) * self.edit_draws

    @property
    def is_planned(self) -> bool:
        """Whether a planner decides something about the song."""
        return self.thinking in ("metadata", "codes")

    @property
    def estimated_duration(self) -> float:
        """The length in seconds that its audio codes or its lyrics, tempo and time signature suggest, at most `duration`."""
        if self.audio_codes:
            return min(codes_length_s(len(self.audio_codes)), self.duration)
        beats = int(self.timesignature) if self.timesignature else None
        return min(song_length_s(self.lyrics, self.bpm, beats), self.duration)

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, given: Any) -> Any:
        """Remove fields without a value, and replace the duration `auto` by the longest and `auto_duration`.

        Some clients send every field: null for those without a value, and "" or "N/A" for tempo, key, time signature and audio
        codes.
        """
        if not isinstance(given, dict):
            return given
        fields = {name: value for name, value in given.items() if value is not None or name == "prompt"}
        for name in _UNSETTABLE:
            if spellings.is_unset(fields.get(name)):
                del fields[name]
        if spellings.choice(fields.get("duration")) == "auto":
            del fields["duration"]
            if spellings.choice(fields.get("task_type")) not in SOURCE_TASKS:  # else the source decides
                fields |= {"duration": LONGEST_S, "auto_duration": True}
        return fields

    @field_validator("duration", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        value = spellings.number(value)
        if isinstance(value, str):
            raise ValueError("must be a number of seconds from 1 to 600, or 'auto'")
        return value

    @field_validator(*_NUMBERS, mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return spellings.number(value)

    @field_validator(*_SWITCHES, mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return spellings.switch(value)

    @field_validator("timesteps")
    @classmethod
    def _levels(cls, value: list[float] | None) -> list[float] | None:
        """A step cannot start at 0; clients of ACE-Step end their lists with it. A list of zeros only counts as omitted."""
        return [level for level in value if level > 0] or None if value else None

    @field_validator("seed", "retake_seed")
    @classmethod
    def _random_seed(cls, value: int | None) -> int | None:
        """ACE-Step uses -1 to ask for a random seed."""
        return None if value == -1 else value

    @field_validator("keyscale", mode="before")
    @classmethod
    def _keyscale(cls, value: Any) -> Any:
        return spellings.keyscale(value)

    @field_validator("timesignature", mode="before")
    @classmethod
    def _timesignature(cls, value: Any) -> Any:
        return spellings.timesignature(value)

    @field_validator(*_CHOICES, mode="before")
    @classmethod
    def _choice(cls, value: Any) -> Any:
        return spellings.choice(value)

    @field_validator("prompt", "lyrics", "source_prompt", "source_lyrics", "plan_negative_prompt", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return spellings.text(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema of what a request may contain: null for every optional field, and the alternative spellings."""
        schema = handler.resolve_ref_schema(handler(core))
        properties = schema["properties"]
        for name, field in properties.items():
            if name == "keyscale":
                field["anyOf"][0]["pattern"] = spellings.KEYSCALE
            if name == "timesignature":
                field["anyOf"][0] = {"enum": list(spellings.TIMESIGNATURES)}
            if name not in schema["required"] and "anyOf" not in field and field.get("type") != "null":
                _allow_null(field)
            if handler.mode == "validation":
                field.get("anyOf", []).extend(_alternative_spellings(name, field))
        return schema


def _alternative_spellings(name: str, field: dict[str, Any]) -> list[dict[str, Any]]:
    """JSON schemas of the values that a request may use besides those of the field's type. Answers never contain them."""
    kind = field.get("anyOf", [field])[0]
    found: list[dict[str, Any]] = []
    if name == "duration" or name in _NUMBERS:
        pattern = spellings.number_pattern(kind["minimum"], kind["maximum"], kind["type"] == "integer")
        found.append({"type": "string", "pattern": pattern})
    if name in _CHOICES:
        found.append({"type": "string", "pattern": spellings.choice_pattern(kind["enum"])})
    if name in _SWITCHES:
        found.append({"type": "string", "pattern": spellings.choice_pattern(spellings.SWITCH)})
    if name in _UNSETTABLE:
        found.append({"enum": list(spellings.UNSET)})
    if name == "lora":
        found.append({"type": "string", "pattern": ADAPTER_NAME})
        found.append(kind["items"])
    if name == "audio_codes":
        found.append({"type": "string", "pattern": spellings.audio_codes_pattern()})
    if name == "duration":
        found.append({"const": "auto", "type": "string"})
    if name == "thinking":
        words = (*kind["enum"], *spellings.THINKING)
        found += [{"type": "boolean"}, {"type": "string", "pattern": spellings.choice_pattern(words)}]
    if name == "plan":
        found.append({"type": "string", "pattern": JOB_PLAN})
    return found


SELF_TEST: Final = MusicRequest(prompt="piano", duration=1.0, steps=2, seed=0)
"""The request that tests an engine: one second of music in two steps, generated like every other song."""


def _allow_null(field: dict[str, Any]) -> None:
    """Change a property of a JSON schema to allow null. Keeps its title, description, default and examples in place."""
    kept = ("title", "description", "default", "examples")
    kind = {name: field.pop(name) for name in list(field) if name not in kept}
    field["anyOf"] = [kind, {"type": "null"}]


def bounds_of(field: str) -> dict[str, Any]:
    """The JSON schema of one field of MusicRequest, for messages and documents."""
    schema: dict[str, Any] = MusicRequest.model_json_schema()["properties"][field]
    kinds: list[dict[str, Any]] = schema.get("anyOf", [{}])
    return schema | kinds[0]  # the second kind is null

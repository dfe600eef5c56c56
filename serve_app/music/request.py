"""`MusicRequest`: the parameters of a song, with their bounds and defaults.

It does not depend on HTTP: the API, the worker, the engine and the command line all use it.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    field_validator,
    model_validator,
)

from serve_app.music import spellings
from serve_app.music.song_length import song_length_s
from serve_app.music.vocabulary import MAX_SEED, Format, Language, TaskType

# Scheme, host name or address, port and path. webhook_sender.check_url checks what a pattern cannot.
_WEBHOOK_URL = r"^https?://([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?([/?][!-~]*)?$"

# No NUL, which PostgreSQL's text type cannot hold.
_Text = r"^[^\x00]*$"
_OneLine = r"^[^\x00-\x1f\x7f]*$"


_MAX_LYRICS: Final = 20_000
_SLOWEST_BPM: Final = 30
_FASTEST_BPM: Final = 300

_NUMBERS: Final = (
    "variations", "seed", "bpm", "steps", "guidance_scale", "shift", "cfg_interval_start", "cfg_interval_end",
    "priority", "deadline_s",
)  # fmt: skip
_CHOICES: Final = ("format", "vocal_language")
_MUSICAL_FIELDS: Final = ("bpm", "keyscale", "timesignature")


class MusicRequest(BaseModel):
    """A request for one song, in one or several variations. Only `prompt` is required."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str = Field(
        min_length=1,
        max_length=4000,
        pattern=_Text,
        description="Describes the music: genre, instruments, mood, voice. The model reads the first 256 tokens, about 200 words. "
        "If the prompt is longer, the job's `warnings` report that it was cut.",
        examples=["warm lo-fi piano, rain, slow"],
    )
    title: str | None = Field(
        None,
        max_length=200,
        pattern=_OneLine,
        description="Title for the file's name and tags. It has no effect on the music. Default: the start of the prompt.",
        examples=["Rainy day"],
    )
    lyrics: str = Field(
        "",
        max_length=_MAX_LYRICS,
        pattern=_Text,
        description="Lyrics to sing, with section tags such as [verse] and [chorus]. Leave it empty, or send [Instrumental], for "
        "music without vocals. The model reads the first 2048 tokens.",
        examples=["[verse]\nSoft notes in the morning light"],
    )
    model: str | None = Field(
        None,
        description="Model that generates the song; GET /v1/models lists them. Default: the service's default model.",
        examples=["ace-step"],
    )
    task_type: TaskType = Field(
        "text2music",
        description="Kind of generation. GET /v1/models lists the tasks that each model supports.",
        examples=["text2music"],
    )
    duration: float = Field(
        60.0,
        ge=1,
        le=600,
        description="Length of the song in seconds, from 1 to 600. Default: 60. `auto` estimates the length from the lyrics, the "
        "tempo and the time signature (120 without lyrics); the job's `request` contains the result.",
        examples=[30],
    )
    variations: int = Field(
        1,
        ge=1,
        le=8,
        description="Number of variations to generate, from 1 to 8. Default: 1. Variation i, counted from 0, uses the seed "
        "`seed` + i; seed 0 follows the largest seed.",
        examples=[2],
    )
    seed: int | None = Field(
        None,
        ge=-1,
        le=MAX_SEED,
        description="Seed of the random noise that generation starts from. The same request with the same seed gives the same "
        "song. Default, and for -1: a random seed, which the job's `request` contains.",
        examples=[7],
    )
    format: Format = Field(
        "mp3",
        description="File format: mp3 (VBR), flac, wav (16-bit), wav32 (32-bit float), ogg (Vorbis), opus or aac (m4a). Default: "
        "mp3. Every file is stereo at 48 kHz.",
        examples=["flac"],
    )
    bpm: int | None = Field(
        None,
        ge=_SLOWEST_BPM,
        le=_FASTEST_BPM,
        description="Tempo in beats per minute, from 30 to 300. Default: the model chooses.",
        examples=[92],
    )
    keyscale: str | None = Field(
        None,
        pattern=r"^[A-G][#b♯♭]? (major|minor)$",
        description="Key, such as `C major` or `F# minor`. Default: the model chooses.",
        examples=["C major"],
    )
    timesignature: Literal["2", "3", "4", "6"] | None = Field(
        None,
        description="Beats per bar: 2 (2/4), 3 (3/4), 4 (4/4) or 6 (6/8). Default: the model chooses.",
        examples=["4"],
    )
    vocal_language: Language = Field(
        "en", description="Language of the lyrics, as an ISO 639 code. Default: en.", examples=["en"]
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=200,
        description="Number of denoising steps, from 1 to 200. Generation time grows with it. Default: 8 for turbo models, 50 for "
        "base and sft models.",
        examples=[8],
    )
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=30,
        description="Strength of classifier-free guidance, from 1 (none) to 30. The higher it is, the more closely the song "
        "follows the prompt. Default: 7 for base and sft models. Turbo models ignore it, and the job's `warnings` report that.",
        examples=[7.0],
    )
    shift: float | None = Field(
        None,
        ge=0.1,
        le=10,
        description="Shift of the timestep schedule, from 0.1 to 10. Above 1, more steps shape the song's structure and fewer "
        "its details. Default: 3 for turbo models, 1 for base and sft models.",
        examples=[3.0],
    )
    cfg_interval_start: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Noise level below which guidance is not applied, from 0 to 1. Default: 0. The noise level falls from 1 to 0 "
        "during denoising, as in ACE-Step.",
        examples=[0.0],
    )
    cfg_interval_end: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Noise level above which guidance is not applied, from 0 to 1. Default: 1. If it is less than "
        "`cfg_interval_start`, guidance is never applied.",
        examples=[1.0],
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
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_Text)],
        Annotated[str, StringConstraints(max_length=512, pattern=_Text)],
    ] = Field(
        default_factory=dict,
        max_length=32,
        description="Your own names and values, at most 32. Sophia returns them with the job and does not use them.",
        examples=[{"project": "rainy-day"}],
    )

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, given: Any) -> Any:
        """Remove fields without a value, and replace the duration `auto` by seconds.

        Some clients send every field: null for those without a value, and "" or "N/A" for tempo, key and time signature.
        """
        if not isinstance(given, dict):
            return given
        fields = {name: value for name, value in given.items() if value is not None or name == "prompt"}
        for name in _MUSICAL_FIELDS:
            if spellings.is_unset(fields.get(name)):
                del fields[name]
        if spellings.choice(fields.get("duration")) == "auto":
            fields["duration"] = _automatic_duration(fields)
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

    @field_validator("seed")
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

    @field_validator("prompt", "lyrics", mode="before")
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
    if name in _MUSICAL_FIELDS:
        found.append({"enum": list(spellings.UNSET)})
    if name == "duration":
        found.append({"const": "auto", "type": "string"})
    return found


def _automatic_duration(given: dict[str, Any]) -> int:
    """The length in seconds that replaces `auto`. Invalid fields are ignored here; their own validators report them."""
    lyrics = given.get("lyrics", "")
    bpm = spellings.number(given.get("bpm"))
    try:
        beats = int(spellings.timesignature(given["timesignature"]))
    except (KeyError, ValueError):
        beats = None
    return song_length_s(
        lyrics=lyrics[:_MAX_LYRICS] if isinstance(lyrics, str) else "",
        bpm=bpm if isinstance(bpm, int) and _SLOWEST_BPM <= bpm <= _FASTEST_BPM else None,
        beats=beats,
    )


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

"""`MusicRequest`: the one list of a song's parameters, with their bounds and defaults.

It is transport-free: the native API, the worker, the engine and the command line all speak it.
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

# A URL as far as a pattern can say it: scheme, a name or an address, port, path. webhook_sender.check_url says the rest.
_WEBHOOK_URL = r"^https?://([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?([/?][!-~]*)?$"

# No NUL: PostgreSQL's text cannot hold it, and no prompt means it.
_Text = r"^[^\x00]*$"
_OneLine = r"^[^\x00-\x1f\x7f]*$"


_MAX_LYRICS: Final = 20_000
_SLOWEST_BPM: Final = 30
_FASTEST_BPM: Final = 300

_NUMBERS: Final = (
    "variations", "seed", "bpm", "steps", "guidance_scale", "shift", "cfg_interval_start", "cfg_interval_end",
    "priority", "deadline_s",
)  # fmt: skip
_WORDS: Final = ("format", "vocal_language")
_MUSICAL_FACTS: Final = ("bpm", "keyscale", "timesignature")


class MusicRequest(BaseModel):
    """One song: what to play and how. Every field but `prompt` may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str = Field(
        min_length=1,
        max_length=4000,
        pattern=_Text,
        description="What the music is like: genre, instruments, mood, voice. The model reads about the first 200 words; the "
        "job's `warnings` say when it was cut.",
        examples=["warm lo-fi piano, rain, slow"],
    )
    title: str | None = Field(
        None,
        max_length=200,
        pattern=_OneLine,
        description="Of the file's tags and name; the model does not read it. Left out: the prompt's beginning.",
        examples=["Rainy day"],
    )
    lyrics: str = Field(
        "",
        max_length=_MAX_LYRICS,
        pattern=_Text,
        description="Words to sing, with section tags such as [verse] and [chorus]. Empty or [Instrumental]: instrumental.",
        examples=["[verse]\nSoft notes in the morning light"],
    )
    model: str | None = Field(
        None, description="Which model plays, one of GET /v1/models. Left out: the default one.", examples=["ace-step"]
    )
    task_type: TaskType = Field(
        "text2music", description="What to do; GET /v1/models lists what each model can.", examples=["text2music"]
    )
    duration: float = Field(
        60.0,
        ge=1,
        le=600,
        description="Length of the song in seconds. `auto`: as the lyrics take at their tempo, 120 without lyrics; the job's "
        "`request` shows the seconds. Left out: 60, whatever the lyrics.",
        examples=[30],
    )
    variations: int = Field(
        1,
        ge=1,
        le=8,
        description="How many versions to make in one go; version i (from 0) uses seed + i; after the largest seed comes 0.",
        examples=[2],
    )
    seed: int | None = Field(
        None,
        ge=-1,
        le=MAX_SEED,
        description="Where the noise starts: the same request and seed give the same song. -1 or left out: drawn and told.",
        examples=[7],
    )
    format: Format = Field(
        "mp3",
        description="File format: mp3 (VBR), flac, wav (16-bit), wav32 (32-bit float), ogg (Vorbis), opus, aac (m4a). Always "
        "stereo, 48 kHz.",
        examples=["flac"],
    )
    bpm: int | None = Field(
        None,
        ge=_SLOWEST_BPM,
        le=_FASTEST_BPM,
        description="Tempo in beats a minute. Left out: the model chooses.",
        examples=[92],
    )
    keyscale: str | None = Field(
        None,
        pattern=r"^[A-G][#b♯♭]? (major|minor)$",
        description="Key, as in `C major` or `F# minor`. Left out: the model chooses.",
        examples=["C major"],
    )
    timesignature: Literal["2", "3", "4", "6"] | None = Field(
        None,
        description="Beats in a bar: 2 (2/4), 3 (3/4), 4 (4/4) or 6 (6/8). Left out: the model chooses.",
        examples=["4"],
    )
    vocal_language: Language = Field("en", description="Language of the lyrics, as an ISO 639 code.", examples=["en"])
    steps: int | None = Field(
        None,
        ge=1,
        le=200,
        description="Denoising steps. Left out: what the variant is made for (turbo 8, base and sft 50).",
        examples=[8],
    )
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=30,
        description="How closely to follow the prompt; 1 is no guidance. Turbo ignores it and the job's `warnings` say so. "
        "Left out: 7 on base and sft.",
        examples=[7.0],
    )
    shift: float | None = Field(
        None,
        ge=0.1,
        le=10,
        description="Shift of the timestep schedule; above 1 spends more steps on the form. Left out: turbo 3, base and sft 1.",
        examples=[3.0],
    )
    cfg_interval_start: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Noise level below which guidance is not applied, as in ACE-Step. The noise level falls from 1 to 0 while the "
        "song is made.",
        examples=[0.0],
    )
    cfg_interval_end: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Noise level above which guidance is not applied. Below `cfg_interval_start`: it is never applied.",
        examples=[1.0],
    )
    priority: int = Field(
        5,
        ge=0,
        le=9,
        description="Among your own jobs of a model, 9 starts before 0. API keys take turns whatever their priorities, unless the "
        "operator made a key that outranks others.",
        examples=[5],
    )
    deadline_s: float | None = Field(
        None,
        ge=1,
        le=604_800,
        description="Seconds from submission in which the job must end, waiting included; later it is `expired`. Left out: 3600, "
        "unless the operator set another.",
        examples=[600],
    )
    webhook_url: str | None = Field(
        None,
        max_length=2000,
        pattern=_WEBHOOK_URL,
        description="Where to POST the job when it has ended, signed as Standard Webhooks has it (standardwebhooks.com) and tried "
        "again for hours until it is answered with 2xx; redirects are not followed. The event's type is `job.` and the state, "
        "its data the job. Addresses inside a network are refused unless the operator allows them.",
        examples=["https://example.com/hooks/sophia"],
    )
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_Text)],
        Annotated[str, StringConstraints(max_length=512, pattern=_Text)],
    ] = Field(
        default_factory=dict,
        max_length=32,
        description="Your own names and values (at most 32), given back with the job and never read.",
        examples=[{"project": "rainy-day"}],
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, given: Any) -> Any:
        """Clients that fill in every field send null for what they leave out, and some "" or "N/A" for musical facts."""
        if not isinstance(given, dict):
            return given
        meant = {name: value for name, value in given.items() if value is not None or name == "prompt"}
        for name in _MUSICAL_FACTS:
            if not spellings.is_said(meant.get(name)):
                del meant[name]
        if spellings.word(meant.get("duration")) == "auto":
            meant["duration"] = _automatic_duration(meant)
        return meant

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
    def _drawn_seed(cls, value: int | None) -> int | None:
        """ACE-Step writes -1 for a seed that is drawn at random."""
        return None if value == -1 else value

    @field_validator("keyscale", mode="before")
    @classmethod
    def _keyscale(cls, value: Any) -> Any:
        return spellings.keyscale(value)

    @field_validator("timesignature", mode="before")
    @classmethod
    def _timesignature(cls, value: Any) -> Any:
        return spellings.timesignature(value)

    @field_validator(*_WORDS, mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return spellings.word(value)

    @field_validator("prompt", "lyrics", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return spellings.text(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema of what is read: null for every field that may be left out, and the other spellings."""
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
                field.get("anyOf", []).extend(_other_spellings(name, field))
        return schema


def _other_spellings(name: str, field: dict[str, Any]) -> list[dict[str, Any]]:
    """JSON schemas of what else is read for a field, beside what its own type says. Never in an answer."""
    kind = field.get("anyOf", [field])[0]
    found: list[dict[str, Any]] = []
    if name == "duration" or name in _NUMBERS:
        pattern = spellings.number_pattern(kind["minimum"], kind["maximum"], kind["type"] == "integer")
        found.append({"type": "string", "pattern": pattern})
    if name in _WORDS:
        found.append({"type": "string", "pattern": spellings.word_pattern(kind["enum"])})
    if name in _MUSICAL_FACTS:
        found.append({"enum": list(spellings.NOT_SAID)})
    if name == "duration":
        found.append({"const": "auto", "type": "string"})
    return found


def _automatic_duration(given: dict[str, Any]) -> int:
    """The length in seconds that `auto` stands for. An invalid field is ignored here; its own validator reports the error."""
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
"""What shows that an engine can play: one second in two steps, through the same path as every song."""


def _allow_null(field: dict[str, Any]) -> None:
    """Change a property of a JSON schema so that null is valid, too; its description and default stay where they are."""
    kept = ("title", "description", "default", "examples")
    kind = {name: field.pop(name) for name in list(field) if name not in kept}
    field["anyOf"] = [kind, {"type": "null"}]


def bounds_of(field: str) -> dict[str, Any]:
    """The JSON schema of one field of MusicRequest, for messages and documents."""
    schema: dict[str, Any] = MusicRequest.model_json_schema()["properties"][field]
    kinds: list[dict[str, Any]] = schema.get("anyOf", [{}])
    return schema | kinds[0]  # the other one is null

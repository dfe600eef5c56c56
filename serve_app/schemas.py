"""What goes over the wire: the one list of a song's parameters with their bounds and defaults, and what is answered.

`MusicRequest` is transport-free: the native API, the worker, the engine and the command line all speak it.
"""

from datetime import datetime
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

from serve_app import spellings
from serve_app.config import Variant
from serve_app.song_length import song_length_s

SAMPLE_RATE: Final = 48_000
"""Samples a second of every song (ACE-Step 1.5's VAE)."""

MAX_PROMPT_TOKENS: Final = 256
MAX_LYRICS_TOKENS: Final = 2048
"""Where AceStepPipeline cuts prompt and lyrics, silently (its `max_text_length` and `max_lyric_length`)."""

MAX_SEED: Final = 2**32 - 1

Format = Literal["mp3", "flac", "wav", "wav32", "ogg", "opus", "aac"]
MEDIA_TYPES: Final[dict[str, str]] = {
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "wav32": "audio/wav",
    "ogg": "audio/ogg",
    "opus": "audio/ogg; codecs=opus",
    "aac": "audio/mp4",
}

TaskType = Literal["text2music"]
TASKS: Final[dict[Variant, tuple[TaskType, ...]]] = {
    "turbo": ("text2music",),
    "base": ("text2music",),
    "sft": ("text2music",),
}
"""What each variant can do here."""

# The languages of ACE-Step 1.5's lyrics (`VALID_LANGUAGES` in its constants.py).
Language = Literal[
    "ar", "az", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "ht", "hu",
    "id", "is", "it", "ja", "ko", "la", "lt", "ms", "ne", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sa", "sk", "sr",
    "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "yue", "zh", "unknown",
]  # fmt: skip


class VariantDefaults(BaseModel):
    """What a request that names no steps, guidance or shift gets."""

    model_config = ConfigDict(frozen=True)

    steps: int = Field(description="Denoising steps.", examples=[8])
    guidance_scale: float = Field(description="How closely to follow the prompt; 1 is no guidance.", examples=[1.0])
    shift: float = Field(description="Shift of the timestep schedule.", examples=[3.0])


# The original's own: turbo is distilled to 8 steps and shift 3, and has its guidance in the weights. For base its page takes 64
# steps, its command line and HTTP interface 50.
VARIANT_DEFAULTS: Final[dict[Variant, VariantDefaults]] = {
    "turbo": VariantDefaults(steps=8, guidance_scale=1.0, shift=3.0),
    "base": VariantDefaults(steps=50, guidance_scale=7.0, shift=1.0),
    "sft": VariantDefaults(steps=50, guidance_scale=7.0, shift=1.0),
}

# A URL as far as a pattern can say it: scheme, a name or an address, port, path. serve_app.webhooks.check_url says the rest.
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
        description="Noise level below which guidance is not applied, as in ACE-Step: it falls from 1 to 0 in the song's making.",
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
    """The seconds that `auto` stands for. Fields are read as far as they are right; what is wrong of them is told by their own."""
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


State = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]


class Progress(BaseModel):
    """How far a running job is."""

    stage: str = Field(
        description="What is being done: conditioning, denoising, decoding, encoding; or storing, when the audio store "
        "refuses the finished song, which is tried again until the job's deadline.",
        examples=["denoising"],
    )
    step: int = Field(description="Steps of this stage that are done.", examples=[3])
    steps: int = Field(description="Steps of this stage in all.", examples=[8])
    fraction: float = Field(ge=0, le=1, description="Part of the whole job that is done, from 0 to 1.", examples=[0.4])
    detail: str | None = Field(None, description="Why it does not go on, if it does not.", examples=[None])


class AudioFile(BaseModel):
    """One finished file."""

    url: str = Field(description="Where to get it.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/audio/0"])
    format: Format = Field(description="File format.", examples=["flac"])
    seconds: float = Field(description="Length in seconds.", examples=[30.0])
    sample_rate: int = Field(description="Samples a second, in Hz.", examples=[SAMPLE_RATE])
    channels: int = Field(description="Channels: 2, stereo.", examples=[2])
    bytes: int = Field(description="Size of the file in bytes.", examples=[1_440_000])
    sha256: str = Field(
        description="SHA-256 of the file, in hex.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    seed: int = Field(description="The seed of this version.", examples=[7])


class Timing(BaseModel):
    """Where a finished job's time went, in seconds."""

    queued_s: float = Field(description="From submission to the start of the last attempt.", examples=[0.4])
    generate_s: float = Field(description="Conditioning, denoising and decoding.", examples=[6.2])
    encode_s: float = Field(description="Encoding and storing, beside the next generation.", examples=[0.3])
    gpu_s: float = Field(description="Time that the last attempt held the device.", examples=[6.2])


class JobError(BaseModel):
    """Why a job failed or expired."""

    code: str = Field(description="Stable code; the documentation lists them.", examples=["worker_lost"])
    message: str = Field(
        description="What happened and what to do.", examples=["The worker was lost 3 times while it ran this job."]
    )


class WebhookAttempt(BaseModel):
    """One attempt to tell the job's `webhook_url`."""

    at: datetime = Field(description="When it was made.", examples=["2026-11-24T10:00:09Z"])
    status: int | None = Field(description="The HTTP status of the answer; null when there was none.", examples=[503])
    error: str | None = Field(description="Why it did not count, in words.", examples=["answered 503"])


class WebhookView(BaseModel):
    """How far telling the job's `webhook_url` has come."""

    state: Literal["pending", "delivered", "failed"] = Field(
        description="pending: under way or to be tried again. delivered: answered with 2xx. failed: given up.",
        examples=["delivered"],
    )
    attempts: int = Field(description="How often it was tried.", examples=[1])
    last_status: int | None = Field(description="The HTTP status of the last answer, if any.", examples=[200])
    last_error: str | None = Field(description="Why the last attempt did not count.", examples=[None])
    next_attempt_at: datetime | None = Field(
        description="When it is tried again at the latest, while pending.", examples=[None]
    )
    history: list[WebhookAttempt] = Field(description="Every attempt that has ended, oldest first.")


class JobLinks(BaseModel):
    """Where to go on."""

    self: str = Field(description="This job.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])
    events: str = Field(
        description="Its progress as server-sent events.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/events"],
    )
    audio: str = Field(description="Its first file.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/audio"])
    cancel: str = Field(
        description="POST here to cancel it.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/cancel"]
    )


class JobView(BaseModel):
    """A job as clients see it."""

    id: str = Field(description="The job's id, a UUIDv7.", examples=["0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])
    state: State = Field(
        description="queued, running, or how it ended: succeeded, failed, cancelled, expired.", examples=["running"]
    )
    model: str = Field(description="The model that plays it.", examples=["ace-step"])
    created_at: datetime = Field(
        description="When it was submitted (RFC 3339, UTC).", examples=["2026-11-24T10:00:00Z"]
    )
    started_at: datetime | None = Field(description="When its last attempt began.", examples=["2026-11-24T10:00:01Z"])
    finished_at: datetime | None = Field(description="When it ended.", examples=["2026-11-24T10:00:09Z"])
    deadline_at: datetime = Field(description="When it expires if it has not ended.", examples=["2026-11-24T11:00:00Z"])
    attempt: int = Field(description="How often it was started.", examples=[1])
    position: int | None = Field(
        description="Place in the queue, from 1, while queued. It is exact up to 500; 501 means at least 501.",
        examples=[3],
    )
    eta_s: float | None = Field(
        description="Estimated seconds until it starts, while queued; null when nothing is known yet, and beyond position 500.",
        examples=[12.5],
    )
    waiting_for: str | None = Field(
        description="Why it waits, while queued.", examples=["2 jobs before this one on 1 worker"]
    )
    progress: Progress | None = Field(description="How far it is, while running.")
    request: MusicRequest = Field(description="What was asked for, with the model and the seed filled in.")
    warnings: list[str] = Field(
        description="What was asked for and could not be honoured.",
        examples=[["guidance_scale is ignored by turbo models"]],
    )
    audio: list[AudioFile] = Field(description="The finished files, one a variation.")
    audio_gone_at: datetime | None = Field(
        description="When the files were removed, since they were kept long enough; they answer 410 from then on.",
        examples=[None],
    )
    timing: Timing | None = Field(description="Where the time went, when finished.")
    gpu_s: float = Field(
        description="Device seconds of all attempts so far whose workers told it; a killed worker's is not in it.",
        examples=[6.2],
    )
    error: JobError | None = Field(description="Why it failed or expired.")
    webhook: WebhookView | None = Field(description="How far telling `webhook_url` has come, once the job has ended.")
    links: JobLinks = Field(description="Addresses of what belongs to this job.")


class JobList(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[JobView] = Field(description="The jobs of this page.")
    next_cursor: str | None = Field(
        description="Pass it as `cursor` for the next page; null on the last.", examples=[None]
    )


class UsageView(BaseModel):
    """What one API key has under way, of all models, and may have; beyond it a submission gets 429."""

    queued_jobs: int = Field(description="Jobs that wait.", examples=[12])
    queued_audio_s: float = Field(description="Seconds of audio in them, all variations.", examples=[720.0])
    max_queued_jobs: int = Field(description="The most jobs that may wait.", examples=[5000])
    max_queued_audio_s: float = Field(description="The most seconds of audio that may wait.", examples=[500000.0])
    pending_webhooks: int = Field(description="Webhooks that no server has accepted yet.", examples=[0])
    max_pending_webhooks: int = Field(
        description="The most of them with which a job may name a `webhook_url`.", examples=[5000]
    )
    max_waits: int = Field(description="Requests that may wait for a song at once.", examples=[500])
    max_streams: int = Field(description="Event streams at once.", examples=[1000])
    max_requests_per_s: float = Field(description="Requests a second, on average.", examples=[200])


class Problem(BaseModel):
    """An error, as RFC 9457 has it (application/problem+json)."""

    type: str = Field(description="Always about:blank; `code` tells errors apart.", examples=["about:blank"])
    title: str = Field(description="The kind of error in words.", examples=["The request is not valid"])
    status: int = Field(description="The HTTP status.", examples=[422])
    code: str = Field(description="Stable name of the kind of error.", examples=["invalid_request"])
    detail: str = Field(
        description="What was wrong this time and what is allowed.", examples=["duration: must be at most 600, got 900"]
    )
    request_id: str = Field(
        description="Quote it when you ask about this error; the logs have it.", examples=["0190d8a47b5e7c3a"]
    )
    errors: list["FieldError"] | None = Field(None, description="One entry a wrong field.")


class FieldError(BaseModel):
    """One wrong field."""

    field: str = Field(description="Path of the field.", examples=["duration"])
    value: str | None = Field(None, description="What was given, shortened.", examples=["900"])
    message: str = Field(description="What is allowed.", examples=["must be at most 600"])


class WorkerView(BaseModel):
    """One worker as operators see it."""

    id: str = Field(description="The worker's id.", examples=["0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])
    model: str = Field(description="Its model.", examples=["ace-step"])
    node: str = Field(description="The node it runs on.", examples=["10.0.0.4"])
    cluster: str = Field(
        description="The cluster that runs it: `cluster_name`, or Ray's id of it.", examples=["on-premises"]
    )
    device: str = Field(description="Its device.", examples=["cuda:0 NVIDIA GeForce RTX 4090"])
    phase: str = Field(
        description="starting, preflight, download, load, warm_up, idle, generating, draining or failed.",
        examples=["idle"],
    )
    since: datetime = Field(description="When this phase began.", examples=["2026-11-24T10:00:00Z"])
    progress: float | None = Field(
        description="How far this phase is, from 0 to 1, where that is known.", examples=[0.41]
    )
    detail: str = Field(description="The phase in words.", examples=["downloading 41 %"])
    error: JobError | None = Field(description="Its last error.")
    job: str | None = Field(description="The job it runs.", examples=[None])
    seen_at: datetime = Field(description="Its last heartbeat.", examples=["2026-11-24T10:00:00Z"])


class ClusterView(BaseModel):
    """How many workers of a model one cluster has, should have, and why."""

    name: str = Field(description="The cluster: its `cluster_name`, or Ray's id of it.", examples=["on-premises"])
    ready: int = Field(description="Its workers that can generate now.", examples=[1])
    wanted: int = Field(description="Workers that it asks for.", examples=[1])
    pending: int = Field(description="Those of them that have not spoken yet.", examples=[0])
    reason: str = Field(description="Why that many.", examples=["min_workers is 1"])


class ScaleView(BaseModel):
    """How many workers a model has, should have, and why: in all clusters that share the queue."""

    ready: int = Field(description="Workers that can generate now.", examples=[1])
    starting: int = Field(description="Workers on their way.", examples=[0])
    wanted: int = Field(description="Workers asked for.", examples=[1])
    pending: int = Field(description="Workers asked for that have not spoken yet.", examples=[0])
    pending_for: str | None = Field(
        description="What those of the cluster that answers wait for.",
        examples=[
            "the 2 nodes that fit are full: a worker needs 0.5 CPU and 1 GPU. It starts when there is room, or a node more"
        ],
    )
    reason: str = Field(
        description="Why the cluster that answers wants its number.",
        examples=[
            "312 s of work in 9 jobs (7 waiting); 6 workers keep to about the 60 s of wait you accept; one more is ready in 40 s"
        ],
    )
    clusters: list[ClusterView] = Field(
        description="Each cluster that shares the queue and decided within the last minute, the one that answers first."
    )


class BreakerView(BaseModel):
    """A model's crash breaker: open when it could not be loaded, for the same reason, too often in a row."""

    open: bool = Field(description="While it is open no worker is started.", examples=[False])
    load_runs: int = Field(
        description="Loads that failed since the last one that worked, and jobs that lost their devices.", examples=[0]
    )
    hosts: list[str] = Field(
        description="Hosts on which no load is tried any more, for a cause of their own. Others may go on.",
        examples=[[]],
    )
    since: datetime | None = Field(description="When this failure came first.", examples=[None])
    error: JobError | None = Field(description="The last failure.")


class CostView(BaseModel):
    """What a model's workers held their devices for, and what that cost. Money is null while `price_per_hour` is not set."""

    hours: int = Field(description="Over so many hours, the one under way included.", examples=[24])
    loading_s: float = Field(description="Device seconds in which workers started or failed to.", examples=[95.1])
    idle_s: float = Field(description="Device seconds without a job.", examples=[312.0])
    generating_s: float = Field(description="Device seconds with a job in hand.", examples=[4210.5])
    songs: int = Field(description="Finished songs.", examples=[640])
    cost: float | None = Field(description="What all of it cost, in the currency of `price_per_hour`.", examples=[0.9])
    per_song: float | None = Field(
        description="What a song cost, with its part of loading and idling; null before the first.", examples=[0.0014]
    )
    lost_to_loading: float | None = Field(description="Money spent on loading.", examples=[0.018])
    lost_to_idle: float | None = Field(description="Money spent on idling.", examples=[0.061])
    lost_without_song: float | None = Field(
        description="Money spent on generating that gave no song: attempts that failed, were cancelled or are still under way.",
        examples=[0.002],
    )


class Health(BaseModel):
    """The whole service at a glance."""

    status: Literal["ok", "starting", "degraded"] = Field(
        description="ok: every model has a worker that can generate. starting: some are on their way. degraded: a model has none.",
        examples=["ok"],
    )
    version: str = Field(description="Sophia's version.", examples=["0.1.0"])
    commit: str = Field(description="The commit it was built from.", examples=["3f2c1a9"])
    jobs: dict[State, int] = Field(
        description="Jobs by state.", examples=[{"queued": 2, "running": 1, "succeeded": 40}]
    )
    oldest_wait_s: float | None = Field(
        description="How long the longest-waiting queued job has waited.", examples=[3.2]
    )
    workers: list[WorkerView] = Field(description="Every worker that is alive or failed lately.")
    scale: dict[str, ScaleView] = Field(description="Workers by model.")
    breakers: dict[str, BreakerView] = Field(description="Crash breakers by model.")
    costs: dict[str, CostView] = Field(description="Device time and money by model, over the last day.")
    notices: list[str] = Field(
        description="What an operator should know.",
        examples=[["ace-step plays the embedded checkpoint: noise, for trying Sophia out"]],
    )


class ModelView(BaseModel):
    """A model that can be asked for."""

    name: str = Field(description="What a request's `model` says.", examples=["ace-step"])
    is_default: bool = Field(description="Whether requests that name no model get it.", examples=[True])
    source: str = Field(
        description="Where its checkpoint comes from.", examples=["ACE-Step/acestep-v15-xl-turbo-diffusers"]
    )
    revision: str | None = Field(
        description="Which revision of it.", examples=["200ba991ae448051e14b0183157e35c2d27c9fb0"]
    )
    variant: Variant | None = Field(
        description="turbo, base or sft; null until a worker has read the checkpoint.", examples=["turbo"]
    )
    tasks: list[TaskType] = Field(description="What it can do.", examples=[["text2music"]])
    defaults: VariantDefaults | None = Field(description="What it uses where a request says nothing.")
    ready_workers: int = Field(description="Workers that can generate now.", examples=[1])
    noise: bool = Field(description="True when it has random weights and plays noise.", examples=[False])


class ModelList(BaseModel):
    """The models, and limits that hold for all of them."""

    models: list[ModelView] = Field(description="The models that are served.")
    formats: list[Format] = Field(description="File formats.", examples=[["mp3", "flac"]])
    max_duration_s: float = Field(description="The longest song, in seconds.", examples=[600])
    max_variations: int = Field(description="The most variations of one request.", examples=[8])


class Pong(BaseModel):
    """The answer to a ping."""

    pong: Literal[True] = Field(True, description="Always true.", examples=[True])
    version: str = Field(description="Sophia's version.", examples=["0.1.0"])
    commit: str = Field(description="The commit it was built from.", examples=["3f2c1a9"])


class Ready(BaseModel):
    """Whether at least one worker can generate."""

    ready: bool = Field(
        description="True when at least one worker of each model can generate, or is asleep by design.", examples=[True]
    )
    reason: str = Field(description="Why, or why not.", examples=["1 worker is ready"])


def bounds_of(field: str) -> dict[str, Any]:
    """The JSON schema of one field of MusicRequest, for messages and documents."""
    schema: dict[str, Any] = MusicRequest.model_json_schema()["properties"][field]
    kinds: list[dict[str, Any]] = schema.get("anyOf", [{}])
    return schema | kinds[0]  # the other one is null

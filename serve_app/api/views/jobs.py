"""Answers about jobs and about what a caller has queued."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from serve_app.api.views.plans import JobPlan
from serve_app.music import SAMPLE_RATE, Format, MusicRequest

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]


class Progress(BaseModel):
    """How far a running job is."""

    stage: str = Field(
        description="The current stage: planning (while the job is queued), preparing (reads the recordings and fetches the "
        "adapters that the request names), conditioning, denoising, decoding, encoding or storing. `storing` means that the audio "
        "store refuses the finished song; the worker retries until the job's deadline.",
        examples=["denoising"],
    )
    step: int = Field(description="Completed steps of this stage.", examples=[3])
    steps: int = Field(description="Total steps of this stage.", examples=[8])
    fraction: float = Field(ge=0, le=1, description="Completed part of the whole job, from 0 to 1.", examples=[0.4])
    detail: str | None = Field(None, description="Why the job makes no progress; null if it does.", examples=[None])


class CandidateView(BaseModel):
    """A song that was played to be compared with others."""

    seed: int = Field(
        description="Its seed. A request with this seed and without `best_of` plays it again.", examples=[8]
    )
    lyric_score: float = Field(ge=0, le=1, description="How closely it follows its lyrics.", examples=[0.37])


class AudioFile(BaseModel):
    """One finished file."""

    url: str = Field(
        description="Where to download it.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/audio/0"]
    )
    format: Format = Field(description="File format.", examples=["flac"])
    seconds: float = Field(description="Length in seconds.", examples=[30.0])
    sample_rate: int = Field(description="Sample rate in Hz.", examples=[SAMPLE_RATE])
    channels: int = Field(description="Number of channels; always 2 (stereo).", examples=[2])
    bytes: int = Field(description="File size in bytes.", examples=[1_440_000])
    sha256: str = Field(
        description="SHA-256 of the file, in hex.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    seed: int = Field(description="The seed of this variation.", examples=[7])
    track: str | None = Field(None, description="The track that it is, if it is a stem; else null.", examples=["drums"])
    lyric_score: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How closely the song follows its lyrics, from 0 to 1, if the request has `lyrics_timing` or `best_of`; else "
        "null. Compare only songs of the same model and lyrics.",
        examples=[0.41],
    )
    lyrics_url: str | None = Field(
        None,
        description="Where to find when its lyrics are sung, if the request has `lyrics_timing`; else null.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/lyrics/0"],
    )
    candidates: list[CandidateView] | None = Field(
        None, description="All songs that were played for this one, if the request has `best_of`; else null."
    )


class Timing(BaseModel):
    """How long each part of a finished job took, in seconds."""

    queued_s: float = Field(
        description="From submission to the start of the last attempt; its planning is part of it.", examples=[0.4]
    )
    plan_queued_s: float | None = Field(
        None,
        description="From submission until a planner began with its plan, at the last attempt; null if no planner had to.",
        examples=[0.1],
    )
    plan_s: float | None = Field(
        None, description="Making its plan, at the last attempt; null if no planner had to.", examples=[2.1]
    )
    generate_s: float = Field(description="Conditioning, denoising and decoding.", examples=[6.2])
    encode_s: float = Field(
        description="Encoding and storing, which run while the worker generates its next job.", examples=[0.3]
    )
    gpu_s: float = Field(
        description="How long the last attempt used the device, without the time that the device spent on plans meanwhile.",
        examples=[6.2],
    )
    plan_gpu_s: float | None = Field(
        None,
        description="Its part of the device's time while its plan was made together with others and beside songs, over all "
        "attempts; null if no planner had to.",
        examples=[0.6],
    )


class JobError(BaseModel):
    """An error with its stable code."""

    code: str = Field(description="Stable error code, as listed in docs/FAILURES.md.", examples=["worker_lost"])
    message: str = Field(
        description="What happened and what to do.", examples=["The worker was lost 3 times while it ran this job."]
    )


class WebhookAttempt(BaseModel):
    """One attempt to deliver the webhook."""

    at: datetime = Field(description="When the attempt was made.", examples=["2026-11-24T10:00:09Z"])
    status: int | None = Field(
        description="HTTP status of the response; null if there was no response.", examples=[503]
    )
    error: str | None = Field(description="Why the attempt failed; null if it succeeded.", examples=["answered 503"])


class WebhookView(BaseModel):
    """Delivery of the job to its `webhook_url`."""

    state: Literal["pending", "delivered", "failed"] = Field(
        description="pending: being sent, or waiting for a retry. delivered: the receiver answered with 2xx. failed: no more "
        "retries.",
        examples=["delivered"],
    )
    attempts: int = Field(description="Number of attempts so far.", examples=[1])
    last_status: int | None = Field(description="HTTP status of the last response, if any.", examples=[200])
    last_error: str | None = Field(description="Why the last attempt failed; null if it succeeded.", examples=[None])
    next_attempt_at: datetime | None = Field(
        description="Latest time of the next attempt, while the delivery is pending.", examples=[None]
    )
    history: list[WebhookAttempt] = Field(description="Every completed attempt, oldest first.")


class JobLinks(BaseModel):
    """Paths that belong to one job."""

    self: str = Field(description="This job.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])
    events: str = Field(
        description="Its progress as server-sent events.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/events"],
    )
    audio: str = Field(description="Its first file.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/audio"])
    songs: str = Field(
        description="All its files in one zip file.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/songs.zip"],
    )
    codes: str = Field(
        description="The audio codes of its songs.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/codes"],
    )
    plan: str = Field(
        description="The plan of its songs, if they were planned.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/plan"],
    )
    signed: str = Field(
        description="Links to its songs and events that open without an API key for a while.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/links"],
    )
    cancel: str = Field(
        description="POST here to cancel the job.", examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/cancel"]
    )


class SignedLinks(BaseModel):
    """Links that open without an API key until they expire. Whoever has one can use it."""

    expires_at: datetime | None = Field(
        description="When they expire; null if this service needs no API keys, so that the links have no signature.",
        examples=["2026-11-24T11:00:00Z"],
    )
    audio: list[str] = Field(
        description="The finished files, one per variation; empty until the job has succeeded.",
        examples=[["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/audio/0?expires=1795518000&signature=…"]],
    )
    songs: str = Field(
        description="All its files in one zip file.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/songs.zip?expires=1795518000&signature=…"],
    )
    events: str = Field(
        description="Its progress as server-sent events, until the link expires or the job has ended.",
        examples=["/v1/jobs/0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d/events?expires=1795518000&signature=…"],
    )


class JobView(BaseModel):
    """A job as its owner sees it."""

    id: str = Field(description="The job's id, a UUIDv7.", examples=["0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])
    state: State = Field(
        description="queued, running, or a final state: succeeded, failed, cancelled, expired.", examples=["running"]
    )
    model: str = Field(description="The model that generates the song.", examples=["ace-step"])
    created_at: datetime = Field(
        description="When the job was submitted (RFC 3339, UTC).", examples=["2026-11-24T10:00:00Z"]
    )
    started_at: datetime | None = Field(description="When the last attempt started.", examples=["2026-11-24T10:00:01Z"])
    finished_at: datetime | None = Field(
        description="When the job reached a final state.", examples=["2026-11-24T10:00:09Z"]
    )
    deadline_at: datetime = Field(
        description="When the job expires unless it has finished.", examples=["2026-11-24T11:00:00Z"]
    )
    attempt: int = Field(description="Number of attempts started so far.", examples=[1])
    position: int | None = Field(
        description="Position in the queue, starting at 1, while queued. Exact up to 500; 501 means at least 501.",
        examples=[3],
    )
    eta_s: float | None = Field(
        description="Estimated seconds until the job starts, while queued. Null beyond position 500, and when the model is "
        "paused, has no worker that is ready, or has not yet shown its speed.",
        examples=[12.5],
    )
    waiting_for: str | None = Field(
        description="Why the job has not started, while queued.",
        examples=["2 jobs before this one; the only worker is busy"],
    )
    progress: Progress | None = Field(description="How far the job is, while running.")
    request: MusicRequest = Field(description="The request as Sophia understood it, with model and seed filled in.")
    plan: JobPlan | None = Field(
        description="What a planner decides about the song before it is rendered; null if it is not planned."
    )
    warnings: list[str] = Field(
        description="Parts of the request that had no effect. The model's are added when the job has succeeded.",
        examples=[["guidance_scale is ignored by turbo models"]],
    )
    audio: list[AudioFile] = Field(description="The finished files, one per variation.")
    audio_gone_at: datetime | None = Field(
        description="When the files were removed at the end of their retention time. From then on they answer 410.",
        examples=[None],
    )
    timing: Timing | None = Field(description="How long each part took, once the job has succeeded.")
    gpu_s: float = Field(
        description="Device seconds of all attempts so far, at its plan, too. An attempt whose worker was killed is not included.",
        examples=[6.2],
    )
    error: JobError | None = Field(description="Why the job failed or expired.")
    webhook: WebhookView | None = Field(
        description="Delivery to `webhook_url`, once the job has reached a final state."
    )
    links: JobLinks = Field(description="Paths of the job's other resources.")


class JobList(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[JobView] = Field(description="The jobs on this page.")
    next_cursor: str | None = Field(
        description="Pass this as `cursor` to get the next page; null on the last page.", examples=[None]
    )


class UsageView(BaseModel):
    """What one API key has queued, across all models, and its limits. A submission beyond a limit gets 429."""

    queued_jobs: int = Field(description="Queued jobs.", examples=[12])
    queued_audio_s: float = Field(description="Seconds of audio in them, all variations included.", examples=[720.0])
    max_queued_jobs: int = Field(description="Maximum number of queued jobs.", examples=[5000])
    max_queued_audio_s: float = Field(description="Maximum seconds of queued audio.", examples=[500000.0])
    pending_webhooks: int = Field(description="Webhooks that no receiver has accepted yet.", examples=[0])
    max_pending_webhooks: int = Field(
        description="Maximum number of pending webhooks; at this limit, jobs with a `webhook_url` are refused.",
        examples=[5000],
    )
    input_bytes: int = Field(description="Bytes that your uploaded recordings take.", examples=[2_400_000])
    max_input_bytes: int = Field(
        description="Maximum bytes of uploaded recordings; a further one is refused.", examples=[5_000_000_000]
    )
    voices: int = Field(description="Your voices.", examples=[3])
    max_voices: int = Field(description="Maximum number of voices.", examples=[100])
    max_waits: int = Field(description="Maximum number of requests that wait for a song at once.", examples=[500])
    max_streams: int = Field(description="Maximum number of event streams at once.", examples=[1000])
    max_requests_per_s: float = Field(description="Maximum average number of requests per second.", examples=[200])

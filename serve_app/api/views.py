"""What the API answers about jobs and errors."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from serve_app.music import SAMPLE_RATE, Format, MusicRequest

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

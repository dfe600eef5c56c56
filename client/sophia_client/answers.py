"""What the service answers with. `python -m tests.support.client_models` writes this file from the service's own classes.

Words from lists that may grow, such as states and formats, are `str`, so that a newer service's are read, too.
"""

from datetime import datetime
from typing import Any

from sophia_client.answer import Answer, JobAnswer, PlanAnswer


class Progress(Answer):
    """How far a running job is."""

    stage: str
    """The current stage: planning (while the job is queued), preparing (reads the recordings and fetches the adapters
    that the request names), conditioning, denoising, decoding, encoding or storing. `storing` means that the audio
    store refuses the finished song; the worker retries until the job's deadline.
    """
    step: int
    """Completed steps of this stage."""
    steps: int
    """Total steps of this stage."""
    fraction: float
    """Completed part of the whole job, from 0 to 1."""
    detail: str | None = None
    """Why the job makes no progress; null if it does."""


class PlanFacts(Answer):
    """What a planner has decided about a job's songs, but for their codes."""

    caption: str
    """What the music is like, in words."""
    lyrics: str
    """What is sung; empty if nothing is."""
    bpm: int | None = None
    """Tempo in beats per minute; null if it is not known."""
    keyscale: str | None = None
    """Key; null if it is not known."""
    timesignature: str | None = None
    """Beats per bar; null if they are not known."""
    duration: float | None = None
    """Length in seconds; null if it is not known."""
    language: str
    """Language of the lyrics."""
    instrumental: bool
    """Whether nothing is sung."""
    seed: int | None = None
    """The `plan_seed`; song i, counted from 0, has the codes of it plus i."""


class JobPlan(Answer):
    """Where the plan of a job stands."""

    state: str
    """waiting for a planner, planning, done, failed, or cancelled with its job. A worker takes the job when it is done."""
    facts: PlanFacts | None = None
    """What was planned, once it is done."""
    url: str
    """Where to get the whole plan, with the audio codes."""


class Candidate(Answer):
    """A song that was played to be compared with others."""

    seed: int
    """Its seed. A request with this seed and without `best_of` plays it again."""
    lyric_score: float
    """How closely it follows its lyrics."""


class AudioFile(Answer):
    """One finished file."""

    url: str
    """Where to download it."""
    format: str
    """File format."""
    seconds: float
    """Length in seconds."""
    sample_rate: int
    """Sample rate in Hz."""
    channels: int
    """Number of channels; always 2 (stereo)."""
    bytes: int
    """File size in bytes."""
    sha256: str
    """SHA-256 of the file, in hex."""
    seed: int
    """The seed of this variation."""
    track: str | None = None
    """The track that it is, if it is a stem; else null."""
    lyric_score: float | None = None
    """How closely the song follows its lyrics, from 0 to 1, if the request has `lyrics_timing` or `best_of`; else null.
    Compare only songs of the same model and lyrics.
    """
    lyrics_url: str | None = None
    """Where to find when its lyrics are sung, if the request has `lyrics_timing`; else null."""
    candidates: list[Candidate] | None = None
    """All songs that were played for this one, if the request has `best_of`; else null."""


class Timing(Answer):
    """How long each part of a finished job took, in seconds."""

    queued_s: float
    """From submission to the start of the last attempt; its planning is part of it."""
    plan_queued_s: float | None = None
    """From submission until a planner began with its plan, at the last attempt; null if no planner had to."""
    plan_s: float | None = None
    """Making its plan, at the last attempt; null if no planner had to."""
    generate_s: float
    """Conditioning, denoising and decoding."""
    encode_s: float
    """Encoding and storing, which run while the worker generates its next job."""
    gpu_s: float
    """How long the last attempt used the device, without the time that the device spent on plans meanwhile."""
    plan_gpu_s: float | None = None
    """Its part of the device's time while its plan was made together with others and beside songs, over all attempts;
    null if no planner had to.
    """


class JobError(Answer):
    """An error with its stable code."""

    code: str
    """Stable error code, as listed in docs/FAILURES.md."""
    message: str
    """What happened and what to do."""


class WebhookAttempt(Answer):
    """One attempt to deliver the webhook."""

    at: datetime
    """When the attempt was made."""
    status: int | None = None
    """HTTP status of the response; null if there was no response."""
    error: str | None = None
    """Why the attempt failed; null if it succeeded."""


class Webhook(Answer):
    """Delivery of the job to its `webhook_url`."""

    state: str
    """pending: being sent, or waiting for a retry. delivered: the receiver answered with 2xx. failed: no more retries."""
    attempts: int
    """Number of attempts so far."""
    last_status: int | None = None
    """HTTP status of the last response, if any."""
    last_error: str | None = None
    """Why the last attempt failed; null if it succeeded."""
    next_attempt_at: datetime | None = None
    """Latest time of the next attempt, while the delivery is pending."""
    history: list[WebhookAttempt]
    """Every completed attempt, oldest first."""


class JobLinks(Answer):
    """Paths that belong to one job."""

    self: str
    """This job."""
    events: str
    """Its progress as server-sent events."""
    audio: str
    """Its first file."""
    songs: str
    """All its files in one zip file."""
    codes: str
    """The audio codes of its songs."""
    plan: str
    """The plan of its songs, if they were planned."""
    signed: str
    """Links to its songs and events that open without an API key for a while."""
    cancel: str
    """POST here to cancel the job."""


class Job(JobAnswer):
    """A job as its owner sees it."""

    id: str
    """The job's id, a UUIDv7."""
    state: str
    """queued, running, or a final state: succeeded, failed, cancelled, expired."""
    model: str
    """The model that generates the song."""
    created_at: datetime
    """When the job was submitted (RFC 3339, UTC)."""
    started_at: datetime | None = None
    """When the last attempt started."""
    finished_at: datetime | None = None
    """When the job reached a final state."""
    deadline_at: datetime
    """When the job expires unless it has finished."""
    attempt: int
    """Number of attempts started so far."""
    position: int | None = None
    """Position in the queue, starting at 1, while queued. Exact up to 500; 501 means at least 501."""
    eta_s: float | None = None
    """Estimated seconds until the job starts, while queued. Null beyond position 500, and when the model is paused, has
    no worker that is ready, or has not yet shown its speed.
    """
    waiting_for: str | None = None
    """Why the job has not started, while queued."""
    progress: Progress | None = None
    """How far the job is, while running."""
    request: dict[str, Any]
    """The request as Sophia understood it, with model and seed filled in."""
    plan: JobPlan | None = None
    """What a planner decides about the song before it is rendered; null if it is not planned."""
    warnings: list[str]
    """Parts of the request that had no effect. The model's are added when the job has succeeded."""
    audio: list[AudioFile]
    """The finished files, one per variation."""
    audio_gone_at: datetime | None = None
    """When the files were removed at the end of their retention time. From then on they answer 410."""
    timing: Timing | None = None
    """How long each part took, once the job has succeeded."""
    gpu_s: float
    """Device seconds of all attempts so far, at its plan, too. An attempt whose worker was killed is not included."""
    error: JobError | None = None
    """Why the job failed or expired."""
    webhook: Webhook | None = None
    """Delivery to `webhook_url`, once the job has reached a final state."""
    links: JobLinks
    """Paths of the job's other resources."""


class JobList(Answer):
    """One page of jobs, newest first."""

    jobs: list[Job]
    """The jobs on this page."""
    next_cursor: str | None = None
    """Pass this as `cursor` to get the next page; null on the last page."""


class SignedLinks(Answer):
    """Links that open without an API key until they expire. Whoever has one can use it."""

    expires_at: datetime | None = None
    """When they expire; null if this service needs no API keys, so that the links have no signature."""
    audio: list[str]
    """The finished files, one per variation; empty until the job has succeeded."""
    songs: str
    """All its files in one zip file."""
    events: str
    """Its progress as server-sent events, until the link expires or the job has ended."""


class Input(Answer):
    """An uploaded recording."""

    id: str
    """SHA-256 of the file, in hex."""
    name: str
    """The value for a request's `source` or `reference`."""
    bytes: int
    """File size in bytes."""
    format: str
    """Container of the file, as found in it."""
    seconds: float
    """Length in seconds, found by decoding the whole file."""
    sample_rate: int
    """Sample rate of the file in Hz."""
    channels: int
    """Number of channels of the file."""
    silent: bool
    """Whether the recording is silent."""
    created_at: datetime
    """When it was uploaded first."""
    expires_at: datetime
    """When it may be deleted. Each use renews this: an upload of the same file, or a job that names it. A voice of it
    keeps it beyond this.
    """


class InputList(Answer):
    """One page of inputs, newest first."""

    inputs: list[Input]
    """The inputs on this page."""
    next_cursor: str | None = None
    """Pass this as `cursor` to get the next page; null on the last page."""


class Voice(Answer):
    """A recording with a name, which the songs of many requests can imitate."""

    name: str
    """The value for a request's `voice`."""
    input: str
    """Its recording, as a request's `reference` or `source` names it. The input stays as long as the voice."""
    seconds: float
    """Length of the recording in seconds."""
    created_at: datetime
    """When the name was given first."""
    changed_at: datetime
    """When the voice got its present recording."""


class VoiceList(Answer):
    """All voices of a caller, by name."""

    voices: list[Voice]
    """The voices."""


class Plan(PlanAnswer):
    """A plan. As the `plan` of a request, as it is or with changes, it is used instead of a new one."""

    caption: str
    """What the music is like, in words."""
    lyrics: str
    """What is sung; empty if nothing is."""
    bpm: int | None = None
    """Tempo in beats per minute; null if it is not known."""
    keyscale: str | None = None
    """Key; null if it is not known."""
    timesignature: str | None = None
    """Beats per bar; null if they are not known."""
    duration: float | None = None
    """Length in seconds; null if it is not known."""
    language: str
    """Language of the lyrics."""
    instrumental: bool
    """Whether nothing is sung."""
    seed: int | None = None
    """The `plan_seed`; song i, counted from 0, has the codes of it plus i."""
    codes: list[list[int]]
    """The audio codes of each song, five a second; empty if only the rest was planned."""


class SongCodes(Answer):
    """The audio codes of one song."""

    url: str
    """Where to download the song."""
    seed: int
    """The song's seed."""
    track: str | None = None
    """The track that it is, if it is a stem; else null."""
    seconds: float
    """The song's length. A cover of the whole song needs it as its `duration`."""
    audio_codes: str
    """The codes, five a second, as a request's `audio_codes` takes them."""


class JobCodes(Answer):
    """The audio codes of a job's songs, in the order of its files."""

    songs: list[SongCodes]
    """The songs."""


class Word(Answer):
    """A word of a line."""

    text: str
    """The word, with the punctuation beside it."""
    start: float
    """When it begins, in seconds from the start of the song."""
    end: float
    """When it ends."""


class Line(Answer):
    """A line of the lyrics."""

    text: str
    """The line, without section tags such as [verse]."""
    start: float
    """When its first word begins."""
    end: float
    """When its last word ends."""
    words: list[Word]
    """Its words. In Chinese and Japanese, its characters."""


class Lyrics(Answer):
    """When the lyrics of a song are sung, as the model planned them; a word that was not sung has a time, too."""

    lines: list[Line]
    """The lines in order, without those that consist of section tags."""


class ModelEntry(Answer):
    """A served model as clients of OpenAI's API read it."""

    id: str
    """The value for a request's `model`."""
    object: str
    """Always model."""
    created: int
    """Always 0: when the model was made is not known, but OpenAI's clients expect a time."""
    owned_by: str
    """Always sophia."""
    name: str
    """The same as `id`, for ACE-Step's clients."""
    input_modalities: list[str]
    """What a request may consist of."""
    output_modalities: list[str]
    """What it makes."""


class VariantDefaults(Answer):
    """A model's values for requests that omit these fields."""

    steps: int
    """Number of denoising steps."""
    guidance_scale: float
    """Strength of classifier-free guidance; 1 is none."""
    shift: float
    """Shift of the timestep schedule."""
    dcw: bool
    """Whether each step is corrected in the wavelet domain."""
    chunk_mask_mode: str
    """How the model is told which frames are new, where the request names no part."""


class Adapter(Answer):
    """An adapter of a model."""

    name: str
    """The value for `name` in a request's `lora`."""
    scale: float
    """How strongly it counts in requests that name no scale."""


class Planner(Answer):
    """The planner of a model."""

    source: str
    """Where it comes from."""
    thinking: str
    """What is planned for requests without `thinking`: none, metadata or codes."""
    tasks: list[str]
    """The tasks whose songs it plans."""


class Model(Answer):
    """A served model."""

    name: str
    """The value for a request's `model`."""
    is_default: bool
    """Whether requests without `model` use it."""
    source: str
    """Where its checkpoint comes from."""
    revision: str | None = None
    """The revision of the checkpoint."""
    variant: str | None = None
    """turbo, base or sft; null until a worker has read the checkpoint."""
    tasks: list[str]
    """The tasks that it supports."""
    defaults: VariantDefaults | None = None
    """The values it uses for fields that a request leaves out."""
    adapters: list[Adapter]
    """The adapters that requests may choose."""
    planner: Planner | None = None
    """Its planner, which `thinking` and POST /v1/plan, /v1/format, /v1/sample and /v1/understand need; null if it has
    none.
    """
    aligns_lyrics: bool | None = None
    """Whether it can tell when a song's words are sung, which `lyrics_timing` and `best_of` need; null until a worker has
    loaded it.
    """
    ready_workers: int
    """Workers that can generate now."""
    noise: bool
    """Whether it generates no music, because its weights are random or it is a simulation."""
    note: str | None = None
    """What it is, if it is not a full checkpoint; else null."""


class ModelList(Answer):
    """The served models and the limits that apply to all of them."""

    object: str
    """Always list, for OpenAI's clients."""
    data: list[ModelEntry]
    """The same models as in `models`, the default one first, for clients of OpenAI's and ACE-Step's APIs."""
    models: list[Model]
    """The served models."""
    formats: list[str]
    """The supported file formats."""
    max_duration_s: float
    """Maximum length of a song, in seconds."""
    max_variations: int
    """Maximum number of variations per request."""
    max_best_of: int
    """Maximum number of songs of which a request can get the best one."""


class Usage(Answer):
    """What one API key has queued, across all models, and its limits. A submission beyond a limit gets 429."""

    queued_jobs: int
    """Queued jobs."""
    queued_audio_s: float
    """Seconds of audio in them, all variations included."""
    max_queued_jobs: int
    """Maximum number of queued jobs."""
    max_queued_audio_s: float
    """Maximum seconds of queued audio."""
    pending_webhooks: int
    """Webhooks that no receiver has accepted yet."""
    max_pending_webhooks: int
    """Maximum number of pending webhooks; at this limit, jobs with a `webhook_url` are refused."""
    input_bytes: int
    """Bytes that your uploaded recordings take."""
    max_input_bytes: int
    """Maximum bytes of uploaded recordings; a further one is refused."""
    voices: int
    """Your voices."""
    max_voices: int
    """Maximum number of voices."""
    max_waits: int
    """Maximum number of requests that wait for a song at once."""
    max_streams: int
    """Maximum number of event streams at once."""
    max_requests_per_s: float
    """Maximum average number of requests per second."""


class WorkerPlanner(Answer):
    """Where a worker's songs are planned, and the memory that was measured when it was loaded. Sizes are in bytes."""

    placement: str
    """worker: in the process that renders. own: in processes that only plan, of which this is one if the sizes are known."""
    reason: str | None = None
    """Why the planner is not in the worker, if it was tried."""
    weights_bytes: int | None = None
    """Size of the planner's weight files."""
    cache_bytes: int | None = None
    """Size of the planner's cache."""
    rows: int | None = None
    """How many sequences it writes at once; a song takes two."""
    free_bytes: int | None = None
    """What was free on the device before the planner was loaded; in a worker, beside the model."""


class Worker(Answer):
    """One worker."""

    id: str
    """The worker's id."""
    model: str
    """Its model."""
    node: str
    """The node it runs on."""
    cluster: str
    """The cluster it runs in: `cluster_name`, or Ray's cluster id."""
    device: str
    """Its device."""
    phase: str
    """starting, preflight, download, load, warm_up, idle, generating, draining or failed."""
    since: datetime
    """When this phase began."""
    progress: float | None = None
    """Progress of this phase, from 0 to 1, if known."""
    detail: str
    """What the worker does in this phase."""
    error: JobError | None = None
    """Its last error."""
    job: str | None = None
    """The job it runs."""
    planner: WorkerPlanner | None = None
    """Where its songs are planned; null if its model has no planner, and while it starts."""
    seen_at: datetime
    """When its last heartbeat arrived."""


class Cluster(Answer):
    """A model's workers in one cluster, and how many the autoscaling policy wants there."""

    name: str
    """The cluster: its `cluster_name`, or Ray's cluster id."""
    ready: int
    """Workers that can generate now."""
    wanted: int
    """Workers that the cluster's autoscaling policy asks for."""
    pending: int
    """Wanted workers that have not reported yet."""
    reason: str
    """Why the policy wants this number."""


class Scale(Answer):
    """A model's workers in all clusters that share the queue, and how many the autoscaling policies want."""

    ready: int
    """Workers that can generate now."""
    starting: int
    """Workers that are starting."""
    wanted: int
    """Workers that the autoscaling policies ask for."""
    pending: int
    """Wanted workers that have not reported yet."""
    pending_for: str | None = None
    """Why the pending workers of this cluster have not started."""
    reason: str
    """Why this cluster's policy wants its number."""
    clusters: list[Cluster]
    """Every cluster that shares the queue and has decided within the last minute, this one first."""


class Breaker(Answer):
    """A model's crash breaker. It opens when loading the model has failed too often in a row for the same reason."""

    open: bool
    """Whether the breaker is open; while it is, no worker is started."""
    load_runs: int
    """Failed loads since the last successful one, plus jobs that lost their device."""
    hosts: list[str]
    """Hosts that start no more loads because the cause lies with the host. Other hosts are not affected."""
    since: datetime | None = None
    """When this failure first occurred."""
    error: JobError | None = None
    """The last failure."""


class Cost(Answer):
    """Device time of a model's workers and its cost. Amounts are null if the model has no `price_per_hour`."""

    hours: int
    """Length of the period in hours; the current hour is included."""
    loading_s: float
    """Device seconds in which workers were starting."""
    idle_s: float
    """Device seconds without a job."""
    generating_s: float
    """Device seconds with a job."""
    songs: int
    """Finished songs."""
    cost: float | None = None
    """Total cost, in the currency of `price_per_hour`."""
    per_song: float | None = None
    """Cost per song, with its share of loading and idling; null before the first song."""
    lost_to_loading: float | None = None
    """Cost of loading."""
    lost_to_idle: float | None = None
    """Cost of idling."""
    lost_without_song: float | None = None
    """Cost of attempts that produced no song: failed, cancelled or still running."""


class Health(Answer):
    """The state of the whole service."""

    status: str
    """ok: every model has a worker that can generate. starting: workers are starting for every model without one.
    degraded: a model has no worker, songs cannot be stored, or background work fails.
    """
    version: str
    """Sophia's version."""
    commit: str
    """The commit Sophia was built from."""
    jobs: dict[str, int]
    """Number of jobs by state."""
    oldest_wait_s: float | None = None
    """Age of the oldest queued job, in seconds."""
    workers: list[Worker]
    """Every worker that is alive or failed recently."""
    scale: dict[str, Scale]
    """Workers by model; `MODEL:planner` are processes that only plan."""
    breakers: dict[str, Breaker]
    """Crash breakers by model."""
    costs: dict[str, Cost]
    """Device time and cost of the last day, by model."""
    notices: list[str]
    """Conditions that an operator should know about."""

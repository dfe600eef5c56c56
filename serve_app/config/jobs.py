"""Jobs: the queue and its limits, encoding, and how long results are kept."""

from pydantic import Field

from serve_app.config.section import Section


class QueueArgs(Section):
    """Leases, attempts, deadlines, and how much may wait."""

    lease_s: float = Field(
        15,
        ge=1,
        le=3600,
        description="Seconds without a heartbeat after which a worker loses its job to another worker.",
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="How often a job is started, if its worker is lost or an error occurs that another attempt may avoid. After "
        "the last attempt it fails with that attempt's error, which is `worker_lost` if its worker was lost. Before the fifth "
        "attempt, one that loses its device does not count.",
    )
    run_limit_s: float = Field(
        3600,
        ge=1,
        description="Seconds that one attempt may take before the job fails as `run_limit_exceeded`. A draining worker has "
        "the same time to finish.",
    )
    default_deadline_s: float = Field(
        3600, ge=1, description="Seconds from submission until a job expires, for jobs that set no deadline."
    )
    max_owner_jobs: int = Field(
        5000,
        ge=1,
        description="The most queued jobs of one API key; a further one gets 429. The default has room for a whole catalogue, "
        "and stops a program in an endless loop within a minute.",
    )
    max_owner_audio_s: float = Field(
        500_000,
        ge=7200,  # the longest request: the stems of 12 tracks, 600 s each
        description="The most seconds of audio that one API key may have queued; a job beyond it gets 429. The default is 139 "
        "hours, about a day of work for one consumer GPU.",
    )
    max_owner_webhooks: int = Field(
        5000,
        ge=1,
        description="The most undelivered webhooks of one API key. At this number, a further job with a `webhook_url` gets 429. "
        "Webhooks of jobs that are already queued may exceed it.",
    )
    max_jobs: int = Field(
        50_000,
        ge=1,
        description="The most queued jobs of all API keys together; a further one gets 429. The default is ten times "
        "`max_owner_jobs`. Keys that submit at the same instant may exceed it by one job each.",
    )


class EncodingArgs(Section):
    """How a worker encodes songs, in processes beside the one that generates."""

    processes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Encoder processes of a worker. Without this setting, one for each of its cores, at most 4.",
    )
    audio_in_hand_s: float = Field(
        1200,
        gt=0,
        description="Seconds of finished audio that a worker may hold until it is stored (23 MB a minute). At this limit, "
        "generation waits. A single song is always allowed.",
    )
    keep_latents: bool = Field(
        True,
        description="Keep each song's latents and audio codes beside its audio (193 kB a minute). A later job with the song as its "
        "source starts from the latents. Requests can switch it off for their songs.",
    )


class RetentionArgs(Section):
    """How long audio and jobs are kept, and how much the janitor may delete at once."""

    results_s: float = Field(
        604_800, ge=0, description="Seconds after a job's end at which its audio is deleted. The job itself stays."
    )
    rows_s: float = Field(
        2_592_000,
        ge=0,
        description="Seconds after a job's end at which the job and its audio are deleted. Device time and costs are kept for "
        "the same time.",
    )
    orphans_s: float = Field(
        86_400,
        ge=0,
        description="Age in seconds at which a file that belongs to no job is deleted. After the database is restored from a "
        "backup, the songs made since that backup belong to no job.",
    )
    orphans_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="The largest part of all files that is deleted at a time because they belong to no job; 10 files are always "
        "allowed. If there are more, none is deleted until `sophia artifacts sweep --confirm`.",
    )
    expiry_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="The largest part of all songs, and of all ended jobs, that one round deletes because their retention is "
        "over; 100 are always allowed. If there are more, a round runs once an hour, and `/v1/health` reports it, until all are "
        "deleted or `sophia artifacts expire --confirm` deletes them. A wrong clock or a mistake in `results_s` thus costs this "
        "part and not everything.",
    )

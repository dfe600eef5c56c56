"""A job, its states and the table of legal moves between them; what a job publishes; a worker's phases.

      submit
        │
        ▼      claim
     queued ─────────▶ running ──────▶ succeeded
      ▲ │ ▲              │ │ │
retry │ │ └──────────────┘ │ └───────▶ failed
      │ │    lease lost    │             │ retry
      │ │                  ├──▶ cancelled│
      │ ├─ cancel ─────────┤             │
      │ └─ deadline ───────┴──▶ expired  │
      └──────────────────────────────────┘

A queued job that cannot be planned moves to failed, too.
"""

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from serve_app.errors import SophiaError
from serve_app.music import Format, MusicRequest


class Status(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether the job has ended. Only a client's retry can move it from here."""
        return self not in (Status.QUEUED, Status.RUNNING)


class WorkerPhase(StrEnum):
    """What a worker is doing. A start passes through the first five phases in this order."""

    STARTING = "starting"
    PREFLIGHT = "preflight"
    DOWNLOAD = "download"
    LOAD = "load"
    WARM_UP = "warm_up"
    IDLE = "idle"
    GENERATING = "generating"
    DRAINING = "draining"
    FAILED = "failed"

    @property
    def is_starting(self) -> bool:
        """Whether the worker is still loading its model, without an error so far."""
        return self in _STARTING_PHASES

    @property
    def is_ready(self) -> bool:
        """Whether the worker can generate."""
        return self in (WorkerPhase.IDLE, WorkerPhase.GENERATING)


_STARTING_PHASES: Final = frozenset(
    {WorkerPhase.STARTING, WorkerPhase.PREFLIGHT, WorkerPhase.DOWNLOAD, WorkerPhase.LOAD, WorkerPhase.WARM_UP}
)


MOVES: Final[Mapping[Status, frozenset[Status]]] = {
    # A queued job fails when it cannot be planned.
    Status.QUEUED: frozenset({Status.RUNNING, Status.FAILED, Status.CANCELLED, Status.EXPIRED}),
    # A running job is queued again when its worker is lost, or after an error that another attempt may avoid.
    Status.RUNNING: frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED, Status.QUEUED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset({Status.QUEUED}),
    Status.EXPIRED: frozenset({Status.QUEUED}),
}
"""For each state, the states that a job may move to. Every update in the store takes its origins from this table."""


def origins(target: Status) -> tuple[Status, ...]:
    """The states from which a job may move to `target`."""
    return tuple(state for state in Status if target in MOVES[state])


@dataclass(frozen=True, slots=True)
class StoredAudio:
    """One finished file in the audio store. Its fields, in this order, are the JSON that the database holds."""

    key: str
    """The file's name in the audio store."""
    format: Format
    seconds: float
    sample_rate: int
    """In Hz."""
    channels: int
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the file, in hex."""
    seed: int
    track: str | None = None
    """The track of the source that it is; None if it is no stem."""
    latents: str | None = None
    """The file of its latents in the audio store; None if they were not kept."""
    lyrics: str | None = None
    """The file with the times of its lyrics in the audio store; None if the request did not ask for them."""
    lyric_score: float | None = None
    """How closely it follows its lyrics, from 0 to 1; None if the request did not ask for it."""
    candidates: tuple[Mapping[str, Any], ...] | None = None
    """`seed` and `lyric_score` of each song of which it is the best; None if it was the only one."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of all its files in the audio store."""
        return tuple(key for key in (self.key, self.latents, self.lyrics) if key is not None)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The file as the database holds it. Ignores keys that this version does not know, and earlier ones lack some."""
        return cls(**{name: values[name] for name in cls.__match_args__ if name in values})

    def to_json(self) -> dict[str, Any]:
        """The JSON for the database. What the file does not have is left out, as in earlier versions."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why the last attempt of a job gave no song. Its fields are the JSON that the database holds."""

    code: str
    """The stable code of an error in `errors.py`."""
    message: str

    @classmethod
    def from_error(cls, error: SophiaError) -> Self:
        """The failure that an error leads to."""
        return cls(error.code, error.message)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The failure as the database holds it. Ignores keys that this version does not know."""
        return cls(values["code"], values["message"])

    def to_json(self) -> dict[str, str]:
        """The JSON for the database."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the queue. Times are seconds since the epoch on the database's clock."""

    id: str
    owner: str
    model: str
    status: Status
    priority: int
    rank: int
    """Order among the owners; see `store.shares`."""
    request: MusicRequest
    audio_seconds: float
    """Duration times the number of songs that the model plays."""
    created_at: float
    deadline_at: float
    attempt: int
    max_attempts: int
    version: int
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    progress: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    audio: tuple[StoredAudio, ...] = ()
    timing: Mapping[str, float] | None = None
    error: JobFailure | None = None
    """Kept while the job waits for its next attempt, so a queued job may have one."""
    idempotency_key: str | None = None
    fingerprint: str | None = field(default=None, repr=False)
    audio_gone_at: float | None = None
    gpu_s: float = 0.0
    """Device seconds of all attempts so far."""
    family: str = ""
    """The foreign API by which it was submitted; empty for the native one."""
    unplanned: bool = False
    """Whether it still waits for its plan, and so cannot be claimed."""


def artifact_folder(attempt: int, worker: str | None) -> str:
    """The folder, inside the job's, for the files of one claim.

    Its name has the worker as well as the attempt: if two workers ever hold the same attempt, neither overwrites the other's files.
    """
    return f"{attempt}-{(worker or '')[-12:]}"


INPUTS_FOLDER: Final = "inputs"
"""The folder of uploaded recordings in the audio store."""


def input_key(upload: str, sha256: str) -> str:
    """The name of an uploaded recording in the audio store. Each upload has a folder of its own, named by an id.

    So two uploads of the same content never share a file, and one can be deleted while the other arrives.
    """
    return f"{INPUTS_FOLDER}/{upload}/{sha256}"


def new_id() -> str:
    """A UUIDv7 (RFC 9562, 5.7): 48 bits of milliseconds, then random, so that ids sort by age."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))

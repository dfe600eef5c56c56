"""A job as a value, its states, and the one table of legal moves between them.

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
"""

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from serve_app.music import MusicRequest


class Status(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing happens to the job any more unless someone asks for it."""
        return self not in (Status.QUEUED, Status.RUNNING)


MOVES: Final[Mapping[Status, frozenset[Status]]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.EXPIRED}),
    Status.RUNNING: frozenset(
        {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED, Status.QUEUED}  # QUEUED: its lease was lost
    ),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset({Status.QUEUED}),
    Status.EXPIRED: frozenset({Status.QUEUED}),
}
"""From each state, the states a job may move to. Every update in the store names its origin from this table."""


def origins(target: Status) -> tuple[Status, ...]:
    """The states from which a job may move to `target`."""
    return tuple(state for state in Status if target in MOVES[state])


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the queue. Times are seconds since the epoch on the database's clock."""

    id: str
    owner: str
    model: str
    status: Status
    priority: int
    rank: int
    """Among the owners; see `store.shares`."""
    request: MusicRequest
    audio_seconds: float
    """Duration times variations."""
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
    audio: tuple[Mapping[str, Any], ...] = ()
    timing: Mapping[str, float] | None = None
    error: Mapping[str, str] | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = field(default=None, repr=False)
    audio_gone_at: float | None = None
    gpu_s: float = 0.0
    """Device seconds of all attempts so far."""


def artifact_folder(attempt: int, worker: str | None) -> str:
    """The folder, within a job's own, of what one claim stores.

    It bears the worker as well as the attempt: should two workers ever hold one attempt, neither overwrites the other's files.
    """
    return f"{attempt}-{(worker or '')[-12:]}"


def new_id() -> str:
    """A UUIDv7 (RFC 9562, 5.7): 48 bits of milliseconds, then random, so that ids sort by age."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))

"""Rows of the table of plans: what a planner has to do, and what became of it. The statements for transactions that move jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

import sqlalchemy as sa

from serve_app.jobs import Job, JobFailure, new_id
from serve_app.store.clock import now
from serve_app.store.planning_turns import begin_turn
from serve_app.store.tables import plans

PlanKind = Literal["plan", "format", "sample", "understand"]
"""The method of the planner that does it."""


class PlanState(StrEnum):
    """The state of a plan. A waiting or planning one that has a job belongs to a queued job."""

    WAITING = "waiting"
    PLANNING = "planning"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether no planner will work on it."""
        return self not in (PlanState.WAITING, PlanState.PLANNING)


@dataclass(frozen=True, slots=True)
class NewPlan:
    """What is to be planned."""

    request: Mapping[str, Any]
    """The arguments of the planner's method as JSON; see `worker/planning.py`."""
    audio_seconds: float
    """Length of the songs to plan, for the order among owners and for estimates."""
    kind: PlanKind = "plan"
    result: Mapping[str, Any] | None = None
    """The plan's JSON, if it exists already: a planner has nothing to do then."""


@dataclass(frozen=True, slots=True)
class PlanTask:
    """One row. Times are seconds since the epoch on the database's clock."""

    id: str
    job: str | None
    """The job that waits for it; None for a plan without songs."""
    model: str
    owner: str
    kind: PlanKind
    state: PlanState
    request: Mapping[str, Any]
    audio_seconds: float
    created_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int
    max_attempts: int
    worker: str | None
    gpu_s: float
    """Device seconds of all attempts so far."""
    result: Mapping[str, Any] | None
    """The JSON of the plan; None until it is done."""
    error: JobFailure | None
    """Of the last attempt. A waiting task may have one, too."""


_COLUMNS: Final = ("id", "job", "model", "owner", "kind", "request", "audio_seconds", "created_at", "started_at",
                   "finished_at", "attempt", "max_attempts", "worker", "gpu_s", "result")  # fmt: skip

_JOBS_AT_ONCE: Final = 500  # SQLite and PostgreSQL limit the parameters of a statement

LEFT: Final[Mapping[str, Any]] = {"lease_until": None, "worker": None}
"""The columns that every move back to `waiting` sets."""


def plan_of(row: Any) -> PlanTask:
    """The task in a row of the table."""
    values = {name: getattr(row, name) for name in _COLUMNS}
    if codes := getattr(row, "codes", None):
        values["result"] = {**row.result, "codes": codes}
    error = JobFailure.from_json(row.error) if row.error else None
    return PlanTask(**values, state=PlanState(row.state), error=error)


def result_columns(result: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns that hold a plan's JSON."""
    if result is None:
        return {"result": None, "codes": None}
    rest = {name: value for name, value in result.items() if name != "codes"}
    return {"result": rest, "codes": result.get("codes") or None}


def plan_is(*states: PlanState) -> sa.ColumnElement[bool]:
    """The condition that a plan is in one of the states, which stand in the statement itself (see `tables.state_is`)."""
    if len(states) == 1:
        return plans.c.state == sa.literal(states[0].value, literal_execute=True)
    names = [state.value for state in states]
    return plans.c.state.in_(sa.bindparam(None, names, expanding=True, literal_execute=True))


def add_plan_of_job(connection: sa.Connection, job: Job, new: NewPlan) -> None:
    """Add the plan of a job, in the transaction that queues it."""
    values = {"job": job.id, "rank": job.rank, "priority": job.priority, "max_attempts": job.max_attempts}
    add_plan(connection, job.model, job.owner, new, values)


def add_plan(connection: sa.Connection, model: str, owner: str, new: NewPlan, values: Mapping[str, Any]) -> PlanTask:
    """Add a plan with the further column `values`."""
    planned = new.result is not None
    row = {
        "id": new_id(),
        "model": model,
        "owner": owner,
        "kind": new.kind,
        "state": PlanState.DONE if planned else PlanState.WAITING,
        "request": dict(new.request),
        "audio_seconds": new.audio_seconds,
        "created_at": now(),
        "finished_at": now() if planned else None,
        "attempt": 0,
        "gpu_s": 0.0,
        **result_columns(new.result),
        **values,
    }
    if not planned:
        begin_turn(connection, model, owner, values["rank"])
    return plan_of(connection.execute(plans.insert().values(row).returning(plans)).one())


def end_plans_of_jobs(connection: sa.Connection, jobs: Sequence[str]) -> None:
    """End what is not planned yet for jobs that have ended. Their planners notice it at the next heartbeat."""
    unfinished = plan_is(PlanState.WAITING, PlanState.PLANNING)
    values = {"state": PlanState.CANCELLED, "finished_at": now(), **LEFT}
    for first in range(0, len(jobs), _JOBS_AT_ONCE):
        theirs = plans.c.job.in_(jobs[first : first + _JOBS_AT_ONCE])
        connection.execute(plans.update().where(theirs, unfinished).values(values))


def plan_again(connection: sa.Connection, job: Job) -> None:
    """Put the plan of a retried job back into the queue of the planners, unless it was done."""
    begin_turn(connection, job.model, job.owner, job.rank)
    ended = plans.update().where(plans.c.job == job.id, plan_is(PlanState.FAILED, PlanState.CANCELLED))
    waiting = ended.values(
        state=PlanState.WAITING,
        max_attempts=plans.c.attempt + job.max_attempts - job.attempt,
        created_at=now(),
        finished_at=None,
        error=None,
        **LEFT,
    )
    connection.execute(waiting)

"""The queue of the planners: claim, heartbeat, publish, fail. And plans without songs, which clients wait for.

A job that needs a plan is queued with `unplanned` set, and its plan waits in the table of plans. A planner claims the plan, with a
lease, and publishes it; from then on workers may claim the job. As with jobs (claims.py), every write of a planner names its claim
(plan, attempt, worker) and changes only a plan that is still held by it. A plan that cannot be made fails its job.

When a job ends, the transaction ends its plan, too (`Moves.to`). Its planner learns that from its heartbeat.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from serve_app.errors import DeadlineExceeded, DeviceLost, NotFound, RunLimitExceeded, SophiaError, WorkerLost
from serve_app.jobs import Status
from serve_app.store.claims import MAX_LOST_DEVICES, Beat
from serve_app.store.clock import now
from serve_app.store.costs import add_planning_time, add_wasted_time
from serve_app.store.database import Database
from serve_app.store.moves import Moves, failure, moving
from serve_app.store.plan_rows import LEFT, NewPlan, PlanState, PlanTask, add_plan, plan_is, plan_of, result_columns
from serve_app.store.planning_turns import charge_turn, owners_in_turn
from serve_app.store.shares import rank_of
from serve_app.store.statements import lock
from serve_app.store.tables import jobs, pauses, plans, state_is

_MAX_OWNERS: Final = 20
"""How many owners a claim tries. One has nothing to give while other planners have locked its plans."""

_MEASURED_PLANS: Final = 20
"""How many plans an estimate uses."""

_OWN_ORDER: Final = (plans.c.priority.desc(), plans.c.created_at, plans.c.id)
_WAITING: Final = plan_is(PlanState.WAITING)
_HELD: Final = plan_is(PlanState.PLANNING)
_WITHOUT_SONGS: Final = plans.c.job.is_(None)


class PlanStore:
    """The table of plans."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- Clients ----------------------------------------------------------------------------------------------------

    def submit(
        self, model: str, new: NewPlan, *, owner: str, deadline_s: float, max_attempts: int, priority: int = 5
    ) -> PlanTask:
        """Queue a plan without songs. It fails at its deadline, and is deleted `deadline_s` after it."""
        rank = rank_of(owner, priority)
        values = {"priority": priority, "max_attempts": max_attempts, "deadline_at": now() + deadline_s}
        with self._database.write("queued") as connection:
            found = connection.execute(sa.select(rank)).scalar_one()
            return add_plan(connection, model, owner, new, values | {"rank": found})

    def get(self, plan: str, owner: str | None = None) -> PlanTask:
        """One plan. Raises NotFound when it does not exist or belongs to another owner than `owner`."""
        return self._find(f"There is no plan {plan}", plans.c.id == plan, owner)

    def of_job(self, job: str, owner: str | None = None) -> PlanTask:
        """The plan of a job. Raises NotFound when there is none, or the job belongs to another owner than `owner`."""
        return self._find(f"Job {job} has no plan", plans.c.job == job, owner)

    def of_jobs(self, jobs: Sequence[str]) -> dict[str, PlanTask]:
        """The plans of these jobs, by job and without the codes. Jobs without a plan are left out."""
        columns = [column for column in plans.c if column is not plans.c.codes]
        with self._database.read() as connection:
            rows = connection.execute(sa.select(*columns).where(plans.c.job.in_(jobs)))
            return {row.job: plan_of(row) for row in rows}

    def ended(self, ids: Sequence[str]) -> list[PlanTask]:
        """Those of these plans that are done or have failed."""
        ended = plans.c.finished_at.is_not(None)
        with self._database.read() as connection:
            return [plan_of(row) for row in connection.execute(sa.select(plans).where(plans.c.id.in_(ids), ended))]

    def _find(self, problem: str, which: sa.ColumnElement[bool], owner: str | None) -> PlanTask:
        theirs = () if owner is None else (plans.c.owner == owner,)
        with self._database.read() as connection:
            row = connection.execute(sa.select(plans).where(which, *theirs)).one_or_none()
        if row is None:
            raise NotFound(problem)
        return plan_of(row)

    def delete(self, plan: str) -> None:
        """Delete a plan without songs, in any state. Its planner stops at the next step."""
        with self._database.write("revoked") as connection:
            connection.execute(plans.delete().where(plans.c.id == plan, _WITHOUT_SONGS))

    # --- Planners ---------------------------------------------------------------------------------------------------

    def take(self, worker: str, model: str, lease_s: float) -> PlanTask | None:
        """Claim the next plan of a model: that of the owner whose turn it is, by priority, then by age.

        None when none waits or the model is paused.
        """
        paused = sa.exists().where(pauses.c.model == model)
        waiting = sa.select(plans.c.id).where(plans.c.model == model, _WAITING, ~paused)
        with self._database.read() as connection:  # an idle planner must not take the write lock for nothing
            # The order makes the database read the index of waiting plans, and not that of all the model's.
            if connection.execute(waiting.order_by(plans.c.rank).limit(1)).one_or_none() is None:
                return None
        values = {
            "state": PlanState.PLANNING,
            "attempt": plans.c.attempt + 1,
            "worker": worker,
            "started_at": now(),
            "lease_until": now() + lease_s,
        }
        with self._database.write() as connection:
            lock(connection, f"the plans of {model}")
            for rank, owner in owners_in_turn(connection, model, _MAX_OWNERS):
                theirs = waiting.where(plans.c.rank == rank, plans.c.owner == owner)
                first = theirs.order_by(*_OWN_ORDER).limit(1).with_for_update(skip_locked=True).scalar_subquery()
                claimed = plans.update().where(plans.c.id == first, _WAITING).values(values).returning(plans)
                row = connection.execute(claimed).one_or_none()
                if row is not None:
                    charge_turn(connection, model, owner, rank, row.audio_seconds)
                    return plan_of(row)
        return None

    def heartbeat(self, beats: Sequence[Beat], lease_s: float) -> set[str]:
        """Extend the leases of claims to `lease_s` from now, and show their jobs' progress. The plans whose claims are lost."""
        with self._database.write(durable=False) as connection:
            return {beat.job for beat in beats if not _extend(connection, beat, lease_s)}

    def lost(self, beats: Sequence[Beat]) -> set[str]:
        """The plans whose claims are lost. Only reads."""
        held = sa.or_(*(sa.and_(*_held(beat.job, beat.attempt, beat.worker)) for beat in beats))
        with self._database.read() as connection:
            found = set(connection.execute(sa.select(plans.c.id).where(held)).scalars())
        return {beat.job for beat in beats} - found

    def publish(
        self,
        task: PlanTask,
        result: Mapping[str, Any],
        *,
        gpu_s: float,
        audio_s: float | None = None,
        account: str = "",
    ) -> bool:
        """Publish a claimed plan, so that workers may claim its job. False when the claim is lost.

        `audio_s` is the length of the job's songs, if the plan has decided it. The device time is charged to the owner's account
        of the model `account`, by default the plan's. May be called again after StoreUnavailable: it recognises its own
        publication when only the answer was lost.
        """
        done = {"state": PlanState.DONE, **result_columns(result), "error": None, "gpu_s": plans.c.gpu_s + gpu_s}
        ended = {"finished_at": now(), "lease_until": None}
        with moving(self._database, "queued", "ended") as moves:
            # The job first, as in every other transaction that changes both: else two could wait for each other.
            _lock_job(moves.connection, task)
            if not moves.connection.execute(plans.update().where(*_held_by(task)).values(done | ended)).rowcount:
                return _is_published(moves.connection, task)
            add_planning_time(moves.connection, task.owner, account or task.model, gpu_s)
            if task.job is not None:
                moves.planned(task.job, audio_s)
        return True

    def fail(self, task: PlanTask, error: SophiaError) -> bool:
        """End the attempt of a claimed plan with an error. False when the claim is lost.

        The plan waits for its next attempt when the error is retryable and attempts are left; else its job fails with the error.
        A lost device does not count as an attempt, as for jobs.
        """
        uncounted = isinstance(error, DeviceLost) and task.attempt < MAX_LOST_DEVICES
        with moving(self._database, "queued", "ended") as moves:
            _lock_job(moves.connection, task)
            if uncounted or (error.retryable and task.attempt < task.max_attempts):
                more = {"max_attempts": plans.c.max_attempts + 1} if uncounted else {}
                return bool(_put_back(moves.connection, *_held_by(task), error=failure(error), **more))
            return bool(_fail(moves, error, *_held_by(task)))

    def charge(self, task: PlanTask, gpu_s: float, account: str = "") -> None:
        """Charge an attempt that gave no plan to its owner, even when the claim is lost."""
        with self._database.write(durable=False) as connection:
            connection.execute(plans.update().where(plans.c.id == task.id).values(gpu_s=plans.c.gpu_s + gpu_s))
            add_wasted_time(connection, task.owner, account or task.model, gpu_s)

    def release(self, worker: str) -> int:
        """Release every claim of a dead planner without waiting for its leases. How many."""
        return self._release(_HELD, plans.c.worker == worker)

    # --- The sweeper ------------------------------------------------------------------------------------------------

    def enforce(self, run_limit_s: float, expire_leases: bool = True) -> int:
        """Fail plans that take too long, release claims with an expired lease, and end plans without songs at their deadline.

        Returns how many plans changed. `expire_leases` is as in `TimeLimits.enforce`.
        """
        too_long = (_HELD, now() - plans.c.started_at >= run_limit_s)
        overdue = (_WITHOUT_SONGS, plan_is(PlanState.WAITING, PlanState.PLANNING), plans.c.deadline_at <= now())
        old = (_WITHOUT_SONGS, 2 * plans.c.deadline_at - plans.c.created_at <= now())
        changed = self._release(_HELD, plans.c.lease_until <= now()) if expire_leases else 0
        changed += self._fail_all(RunLimitExceeded(), *too_long)
        changed += self._fail_all(DeadlineExceeded(), *overdue)
        if self._any(*old):
            with self._database.write(durable=False) as connection:
                connection.execute(plans.delete().where(*old))
        return changed

    def extend(self, seconds: float) -> None:
        """Extend the run limit of every plan in the making, by the time for which the machine was suspended."""
        with self._database.write() as connection:
            connection.execute(plans.update().where(_HELD).values(started_at=plans.c.started_at + seconds))

    def _release(self, *held: Any) -> int:
        """Put the held plans back that have attempts left, and fail the others."""
        if not self._any(*held):
            return 0
        with moving(self._database, "queued", "ended", "revoked") as moves:
            _lock_jobs(moves.connection, *held)
            return _put_back(moves.connection, *held, plans.c.attempt < plans.c.max_attempts) + _fail(
                moves, WorkerLost(), *held
            )

    def _fail_all(self, error: SophiaError, *where: Any) -> int:
        if not self._any(*where):
            return 0
        with moving(self._database, "ended", "revoked") as moves:
            _lock_jobs(moves.connection, *where)
            return _fail(moves, error, *where)

    def _any(self, *where: Any) -> bool:
        """Whether a plan matches. Usually none does, and then no write lock is taken."""
        with self._database.read() as connection:
            return connection.execute(sa.select(plans.c.id).where(*where).limit(1)).first() is not None

    # --- Estimates --------------------------------------------------------------------------------------------------

    def without_songs(self, model: str) -> int:
        """How many plans without songs a model has to make."""
        to_make = (plans.c.model == model, _WITHOUT_SONGS, plan_is(PlanState.WAITING, PlanState.PLANNING))
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).where(*to_make)).scalar_one())

    def audio_to_make(self, model: str, most: int | None = None) -> float:
        """Seconds of audio in the plans that a model has to make; of the waiting ones, count at most `most`."""
        asked = sa.select(plans.c.audio_seconds).where(plans.c.model == model)
        waiting = asked.where(_WAITING).order_by(plans.c.rank).limit(most).subquery()
        held = asked.where(_HELD).subquery()
        total = 0.0
        with self._database.read() as connection:
            for part in (waiting, held):
                total += connection.execute(
                    sa.select(sa.func.coalesce(sa.func.sum(part.c.audio_seconds), 0.0))
                ).scalar_one()
        return total

    def speed(self, model: str) -> float | None:
        """Device seconds for a planned second of audio, over the last plans that were made. None before the first."""
        made = (
            plans.c.model == model,
            plans.c.finished_at.is_not(None),
            plan_is(PlanState.DONE),
            plans.c.kind == "plan",
        )
        last = sa.select(plans.c.audio_seconds, plans.c.gpu_s).where(*made, plans.c.attempt > 0)
        with self._database.read() as connection:
            rows = connection.execute(last.order_by(plans.c.finished_at.desc()).limit(_MEASURED_PLANS)).all()
        seconds = sum(row.audio_seconds for row in rows)
        return sum(row.gpu_s for row in rows) / seconds if seconds else None


def _extend(connection: sa.Connection, beat: Beat, lease_s: float) -> bool:
    """Extend one lease. The progress is shown by the job, which is queued still."""
    held = _held(beat.job, beat.attempt, beat.worker)
    extended = plans.update().where(*held).values(lease_until=now() + lease_s).returning(plans.c.job)
    row = connection.execute(extended).one_or_none()
    if row is not None and row.job is not None and beat.progress is not None:
        shown = {"progress": dict(beat.progress), "version": jobs.c.version + 1}
        unplanned = (state_is(Status.QUEUED), jobs.c.unplanned.is_not(None))
        connection.execute(jobs.update().where(jobs.c.id == row.job, *unplanned).values(shown))
    return row is not None


def _held(plan: str, attempt: int, worker: str | None) -> tuple[Any, ...]:
    """The condition that a claim is not lost."""
    return (plans.c.id == plan, plans.c.attempt == attempt, plans.c.worker == worker, _HELD)


def _held_by(task: PlanTask) -> tuple[Any, ...]:
    return _held(task.id, task.attempt, task.worker)


def _is_published(connection: sa.Connection, task: PlanTask) -> bool:
    """Whether this very claim has already been published."""
    claim = (plans.c.id == task.id, plans.c.attempt == task.attempt, plans.c.worker == task.worker)
    done = plans.c.state == PlanState.DONE
    return connection.execute(sa.select(plans.c.id).where(*claim, done)).one_or_none() is not None


def _lock_job(connection: sa.Connection, task: PlanTask) -> None:
    if task.job is not None:
        connection.execute(sa.select(jobs.c.id).where(jobs.c.id == task.job).with_for_update())


def _lock_jobs(connection: sa.Connection, *where: Any) -> None:
    theirs = jobs.c.id.in_(sa.select(plans.c.job).where(*where))
    connection.execute(sa.select(jobs.c.id).where(theirs).order_by(jobs.c.id).with_for_update())


def _put_back(connection: sa.Connection, *where: Any, **values: Any) -> int:
    """Let plans wait for their next attempt. How many."""
    back = plans.update().where(*where).values(state=PlanState.WAITING, **LEFT, **values).returning(plans.c.job)
    put_back = connection.execute(back).all()
    waiting = [row.job for row in put_back if row.job is not None]
    shown = jobs.update().where(jobs.c.id.in_(waiting), state_is(Status.QUEUED))
    connection.execute(shown.values(progress=None, version=jobs.c.version + 1))
    return len(put_back)


def _fail(moves: Moves, error: SophiaError, *where: Any) -> int:
    """Fail plans, and their jobs. How many plans."""
    values = {"state": PlanState.FAILED, "error": failure(error), "finished_at": now(), "lease_until": None}
    failed = moves.connection.execute(plans.update().where(*where).values(values).returning(plans.c.job)).all()
    theirs = [row.job for row in failed if row.job is not None]
    if theirs:
        moves.fail(error, jobs.c.id.in_(theirs), state_is(Status.QUEUED))
    return len(failed)

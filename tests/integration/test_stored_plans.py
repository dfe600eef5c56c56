"""The queue of the planners, on both databases: claims, leases, fencing, order, and what becomes of a job without its plan."""

import pytest
import sqlalchemy as sa

from serve_app.errors import DeviceLost, GenerationError, NotFound, OutOfDeviceMemory, WorkerLost
from serve_app.jobs import Status
from serve_app.store import Beat, NewPlan, PlanState, PlanTask, Store
from serve_app.store.jobs import Admission
from serve_app.store.tables import jobs, plans
from tests.support.queue import claim, claim_plan, finish, submit, submit_unplanned

PLAN = {"caption": "piano", "bpm": 120}


def test_a_job_is_claimable_once_it_is_planned(store: Store) -> None:
    """No worker gets a job before its plan; others that need none go ahead of it. Then its plan is there for the worker."""
    unplanned = submit_unplanned(store)
    plain = submit(store)

    first = store.claims.take("w", "m", 60)
    before = store.claims.take("w", "m", 60)
    task = claim_plan(store)
    published = store.plans.publish(task, PLAN, gpu_s=2.0)
    after = store.claims.take("w", "m", 60)

    assert (first and first.id, before) == (plain.id, None)
    assert (task.job, task.attempt, task.request) == (unplanned.id, 1, {"caption": "piano"})
    assert published
    assert after is not None
    assert (after.id, after.unplanned) == (unplanned.id, False)
    assert store.plans.of_job(unplanned.id).result == PLAN


def test_a_plan_that_exists_needs_no_planner(store: Store) -> None:
    """A job that comes with its plan can be claimed at once."""
    request = submit(store).request
    store.claims.take("w", "m", 60)

    admission = Admission(plan=NewPlan({}, 10.0, result=PLAN))
    job, _ = store.jobs.submit(request, owner="", deadline_s=60, max_attempts=1, admission=admission)

    assert store.plans.take("p", "m", 60) is None
    assert claim(store).id == job.id
    assert store.plans.of_job(job.id).result == PLAN


def test_a_jobs_plan_is_read_with_and_without_its_codes(store: Store) -> None:
    """The plans of many jobs come without the codes, which are most of their size; that of one job is whole."""
    job = submit_unplanned(store)
    plain = submit(store)
    whole = PLAN | {"codes": [[1, 2], [3, 4]]}
    store.plans.publish(claim_plan(store), whole, gpu_s=1.0)

    plans_of_page = store.plans.of_jobs([job.id, plain.id])

    assert {job: task.result for job, task in plans_of_page.items()} == {job.id: PLAN}
    assert store.plans.of_job(job.id).result == whole


def test_only_plans_that_have_ended_are_reported_as_ended(store: Store) -> None:
    """A call that waits for its plan finds it when it is done or has failed, and not before."""
    waiting, done, failed = (
        store.plans.submit("m", NewPlan({}, 1.0), owner="", deadline_s=60, max_attempts=1).id for _ in range(3)
    )
    claimed = {task.id: task for task in (claim_plan(store) for _ in range(3))}
    store.plans.publish(claimed[done], PLAN, gpu_s=1.0)
    store.plans.fail(claimed[failed], GenerationError("no"))

    ended = {
        task.id: (task.result, task.error and task.error.message) for task in store.plans.ended([waiting, done, failed])
    }

    assert ended == {done: (PLAN, None), failed: (None, "no")}


def test_the_length_that_a_plan_decides_counts_in_the_queue(store: Store) -> None:
    """The owner's share, the job and its account have the plan's length instead of the one at submission."""
    submit_unplanned(store, owner="a", duration=600.0)
    assert store.backlog.use("a").audio_s == 600.0

    store.plans.publish(claim_plan(store), PLAN, gpu_s=1.0, audio_s=30.0)
    used = store.backlog.use("a")
    is_wrong = store.backlog.recount()
    job = claim(store)
    finish(store, job, gpu_s=4.0)
    account = store.costs.owners(1)[0]

    assert (used.jobs, used.audio_s, is_wrong) == (1, 30.0, False)
    assert job.audio_seconds == 30.0
    assert (account.songs, account.audio_s, account.gpu_s) == (1, 30.0, 5.0)
    assert store.backlog.use("a").audio_s == 0.0


def test_of_two_planners_one_gets_a_plan_and_only_it_publishes(store: Store) -> None:
    """A claim is one planner's. Once it is lost, the planner can neither publish, nor fail, nor keep the plan."""
    job = submit_unplanned(store)
    lost = claim_plan(store, "one")
    other = store.plans.take("two", "m", 60)
    lose_lease(store, lost)
    store.plans.enforce(3600)
    held = claim_plan(store, "two")

    assert other is None
    assert (held.id, held.attempt) == (lost.id, 2)
    assert not store.plans.publish(lost, PLAN, gpu_s=1.0)
    assert not store.plans.fail(lost, GenerationError("no"))
    assert store.plans.heartbeat([beat(lost), beat(held)], 60) == {lost.id}
    assert store.plans.publish(held, PLAN, gpu_s=1.0)
    assert store.plans.publish(held, PLAN, gpu_s=1.0)  # only the answer was lost
    assert store.plans.lost([beat(held)]) == {held.id}
    assert store.costs.owners(1)[0].gpu_s == 1.0
    assert claim(store).id == job.id


@pytest.mark.parametrize("end", ["cancel", "delete", "deadline"])
def test_the_end_of_a_job_ends_its_planning(store: Store, end: str) -> None:
    """Cancel, delete and deadline take the plan from its planner, and nothing waits for a planner any more."""
    job = submit_unplanned(store)
    waiting = submit_unplanned(store)
    task = claim_plan(store)
    for ended in (job, waiting):
        if end == "cancel":
            store.jobs.cancel(ended.id)
        elif end == "delete":
            store.jobs.delete(ended.id)
        else:
            set_job(store, ended.id, deadline_at=0)
    if end == "deadline":
        store.time_limits.enforce(3600)

    assert store.plans.heartbeat([beat(task)], 60) == {task.id}
    assert store.plans.take("p", "m", 60) is None
    assert not store.plans.publish(task, PLAN, gpu_s=1.0)
    assert not store.plans.fail(task, GenerationError("no"))
    assert store.backlog.use("").jobs == 0


def test_a_retried_job_is_planned_again_unless_it_was(store: Store) -> None:
    """A job that was cancelled while it was planned needs its plan still; one that was planned goes to the workers."""
    unplanned = submit_unplanned(store)
    store.jobs.cancel(unplanned.id)
    store.jobs.retry(unplanned.id, 3)
    assert store.claims.take("w", "m", 60) is None
    task = claim_plan(store)
    store.plans.publish(task, PLAN, gpu_s=1.0)
    assert task.job == unplanned.id

    store.jobs.cancel(unplanned.id)
    store.jobs.retry(unplanned.id, 3)
    assert store.plans.take("p", "m", 60) is None
    assert claim(store).id == unplanned.id
    assert store.plans.of_job(unplanned.id).result == PLAN


def test_a_job_whose_planner_dies_too_often_fails_with_its_error(store: Store) -> None:
    """A dead planner's plan waits for another planner at once, and after the last attempt the job fails, out of the queue."""
    job = submit_unplanned(store, max_attempts=2)
    claim_plan(store, "one")
    assert store.plans.release("one") == 1
    waiting = store.plans.of_job(job.id)
    claim_plan(store, "two")
    assert store.plans.release("two") == 1
    ended = store.jobs.get(job.id)

    assert (waiting.state, waiting.attempt) == (PlanState.WAITING, 1)
    assert ended.status is Status.FAILED
    assert ended.error is not None
    assert ended.error.code == WorkerLost.code
    assert store.backlog.use("").jobs == 0
    assert store.plans.take("p", "m", 60) is None


def test_an_error_that_a_retry_may_avoid_is_retried(store: Store) -> None:
    """A retryable error leaves the plan to another attempt, another error fails the job, and a lost device costs no attempt."""
    job = submit_unplanned(store, max_attempts=1)
    store.plans.fail(claim_plan(store), DeviceLost("gone"))
    again = store.plans.of_job(job.id)
    store.plans.fail(claim_plan(store), OutOfDeviceMemory("too large"))
    ended = store.jobs.get(job.id)

    assert (again.state, again.max_attempts, again.error and again.error.code) == (PlanState.WAITING, 2, "device_lost")
    assert (ended.status, ended.error and ended.error.message) == (Status.FAILED, "too large")


def test_a_plan_that_takes_too_long_ends_its_job(store: Store) -> None:
    """The run limit holds for planning as for a song."""
    job = submit_unplanned(store)
    task = claim_plan(store)
    assert store.plans.enforce(3600) == 0
    assert store.plans.enforce(0) == 1
    ended = store.jobs.get(job.id)

    assert (ended.status, ended.error and ended.error.code) == (Status.FAILED, "run_limit_exceeded")
    assert store.plans.lost([beat(task)]) == {task.id}


def test_owners_take_turns_at_the_planner(store: Store) -> None:
    """One with a hundred jobs leaves room for one with two; within an owner's jobs, priority decides."""
    for _ in range(6):
        submit_unplanned(store, owner="many")
    submit_unplanned(store, owner="many", priority=9)
    for _ in range(2):
        claim_plan(store)
    submit_unplanned(store, owner="few")
    submit_unplanned(store, owner="few")

    order = [claim_plan(store) for _ in range(5)]
    first = store.plans.get(first_planned(store))

    assert [task.owner for task in order].count("few") == 2
    assert [task.owner for task in order[:3]].count("few") >= 1
    assert first.job is not None
    assert store.jobs.get(first.job).priority == 9


def test_a_queued_job_shows_how_far_its_plan_is(store: Store) -> None:
    """The planner's progress is the job's until the plan is done; clients who watch the job see a new version."""
    job = submit_unplanned(store)
    task = claim_plan(store)
    store.plans.heartbeat([beat(task, step=3)], 60)
    shown = store.jobs.get(job.id)
    store.plans.publish(task, PLAN, gpu_s=1.0)
    planned = store.jobs.get(job.id)

    assert shown.progress == {"stage": "planning", "step": 3}
    assert (planned.progress, planned.status) == (None, Status.QUEUED)
    assert job.version < shown.version < planned.version


def test_a_plan_without_songs_ends_at_its_deadline_and_is_deleted(store: Store) -> None:
    """A client gets its plan or its error, from its own rows only; a row that nobody fetched goes after its deadline."""
    one = store.plans.submit("m", NewPlan({}, 10.0), owner="a", deadline_s=600, max_attempts=3)
    late = store.plans.submit("m", NewPlan({}, 10.0, "format"), owner="a", deadline_s=0, max_attempts=3)
    store.plans.enforce(3600)
    task = claim_plan(store)
    store.plans.publish(task, PLAN, gpu_s=1.0)
    done = store.plans.get(one.id, "a")
    with pytest.raises(NotFound):
        store.plans.get(one.id, "b")
    store.plans.delete(one.id)

    assert (task.id, done.result, done.state) == (one.id, PLAN, PlanState.DONE)
    with pytest.raises(NotFound):
        store.plans.get(one.id)
    with pytest.raises(NotFound):
        store.plans.get(late.id)


def test_a_paused_model_plans_nothing(store: Store) -> None:
    """While the operator has paused a model, no planner gets its plans."""
    submit_unplanned(store)
    store.pauses.pause("m", "maintenance")
    paused = store.plans.take("p", "m", 60)
    store.pauses.resume("m")

    assert paused is None
    assert store.plans.without_songs("m") == 0
    assert claim_plan(store).job is not None


def test_deleted_jobs_take_their_plans_along(store: Store) -> None:
    """A plan does not outlive its job."""
    job = submit_unplanned(store)
    store.plans.publish(claim_plan(store), PLAN, gpu_s=1.0)
    store.jobs.delete(job.id)

    with store.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(plans)).scalar_one() == 0


def beat(task: PlanTask, step: int | None = None) -> Beat:
    progress = None if step is None else {"stage": "planning", "step": step}
    return Beat(task.id, task.attempt, str(task.worker), progress)


def lose_lease(store: Store, task: PlanTask) -> None:
    with store.database.write() as connection:
        connection.execute(plans.update().where(plans.c.id == task.id).values(lease_until=0))


def set_job(store: Store, job: str, **values: float) -> None:
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job).values(values))


def first_planned(store: Store) -> str:
    first = sa.select(plans.c.id).where(plans.c.started_at.is_not(None)).order_by(plans.c.started_at, plans.c.id)
    with store.database.read() as connection:
        return str(connection.execute(first.limit(1)).scalar_one())

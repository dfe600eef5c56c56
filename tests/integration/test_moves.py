"""The table of legal moves, checked by a hypothesis state machine on both databases, with claimers that race."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from serve_app.errors import BadAudio, Conflict, GenerationError, NotFound
from serve_app.jobs import MOVES, Job, Status
from serve_app.music import MusicRequest
from serve_app.store import Beat, NewPlan, PlanState, PlanTask, Store
from serve_app.store.jobs import Admission
from serve_app.store.tables import jobs
from tests.support.queue import stored_audio

CLAIMERS = 4
MAX_ATTEMPTS = 2


class Queue(RuleBasedStateMachine):
    """Clients, workers, time and death do what they like; a model of the table says what may come of it."""

    store: Store  # set by the test, for each database

    known = Bundle("known")
    claims = Bundle("claims")
    plans = Bundle("plans")

    @initialize()
    def empty(self) -> None:
        self.seen: dict[str, Job] = {}
        self.published: dict[str, int] = {}
        self.deleted: set[str] = set()
        with self.store.database.write() as connection:
            connection.execute(jobs.delete())  # and so their plans
        self.store.backlog.recount()

    @rule(target=known, priority=st.integers(0, 9), needs_plan=st.booleans())
    def submit(self, priority: int, needs_plan: bool) -> str:
        request = MusicRequest(prompt="x", model="m", seed=1, priority=priority)
        admission = Admission(plan=NewPlan({}, 60.0) if needs_plan else None)
        job, _ = self.store.jobs.submit(
            request, owner="", deadline_s=600, max_attempts=MAX_ATTEMPTS, admission=admission
        )
        return job.id

    @rule(target=plans)
    def claim_plan(self) -> PlanTask | None:
        task = self.store.plans.take("p", "m", 60)
        if task is not None:
            assert self._state(str(task.job)) is Status.QUEUED
        return task

    @rule(task=plans, end=st.sampled_from(["publish", "fail", "put back", "die"]))
    def end_plan(self, task: PlanTask | None, end: str) -> None:
        if task is None:
            return
        held = not self.store.plans.lost([Beat(task.id, task.attempt, "p")])
        if end == "die":
            self.store.plans.release("p")
        elif end == "publish":
            done = self.store.plans.publish(task, {}, gpu_s=1.0, audio_s=30.0)
            assert done == (held or self._is_done(task))
        else:
            assert self.store.plans.fail(task, BadAudio() if end == "put back" else GenerationError()) == held

    @rule(target=claims)
    def claim_at_once(self) -> list[Job]:
        """Several claimers at the same moment: nobody gets what another has. How many get one is theirs to race for."""
        with ThreadPoolExecutor(CLAIMERS) as pool:
            claimed = [
                job for job in pool.map(lambda i: self.store.claims.take(f"w{i}", "m", 60), range(CLAIMERS)) if job
            ]
        assert len({job.id for job in claimed}) == len(claimed)
        for job in claimed:
            assert job.status is Status.RUNNING
            assert job.id not in self.seen or job.attempt == self.seen[job.id].attempt + 1
        return claimed

    @rule(claimed=claims, index=st.integers(0, CLAIMERS - 1))
    def finish(self, claimed: list[Job], index: int) -> None:
        claim = _one_of(claimed, index)
        if claim is None:
            return
        held = self._holds(claim)
        done = self.store.claims.publish(
            claim, audio=[stored_audio(seed=claim.attempt)], timing={"gpu_s": 1.0}, warnings=[]
        )
        said_again = self.published.get(claim.id) == claim.attempt and claim.id not in self.deleted
        assert done == (held or said_again)
        if held:
            assert claim.id not in self.published
            self.published[claim.id] = claim.attempt

    @rule(claimed=claims, index=st.integers(0, CLAIMERS - 1), retryable=st.booleans())
    def fail(self, claimed: list[Job], index: int, retryable: bool) -> None:
        claim = _one_of(claimed, index)
        if claim is None:
            return
        held = self._holds(claim)
        assert self.store.claims.fail(claim, BadAudio() if retryable else GenerationError()) == held

    @rule(claimed=claims, index=st.integers(0, CLAIMERS - 1))
    def beat(self, claimed: list[Job], index: int) -> None:
        claim = _one_of(claimed, index)
        if claim is None:
            return
        held = self._holds(claim)
        assert self.store.claims.heartbeat([Beat(claim.id, claim.attempt, str(claim.worker), {"step": 1})], 60) == (
            set() if held else {claim.id}
        )

    @rule(claimed=claims, index=st.integers(0, CLAIMERS - 1))
    def lose_lease(self, claimed: list[Job], index: int) -> None:
        claim = _one_of(claimed, index)
        if claim is None:
            return
        if self._holds(claim):
            self._set(claim.id, lease_until=0)
            self.store.time_limits.enforce(3600)
            assert not self._holds(claim)

    @rule(job=known)
    def pass_deadline(self, job: str) -> None:
        was = self._state(job)
        self._set(job, deadline_at=0)
        self.store.time_limits.enforce(3600)
        if was in (Status.QUEUED, Status.RUNNING):
            assert self._state(job) is Status.EXPIRED
        else:
            assert self._state(job) is was

    @rule(job=known)
    def cancel(self, job: str) -> None:
        was = self._state(job)
        with suppress(Conflict, NotFound):
            self.store.jobs.cancel(job)
            assert was is not None
            assert Status.CANCELLED in MOVES[was]

    @rule(job=known)
    def retry(self, job: str) -> None:
        was = self._state(job)
        with suppress(Conflict, NotFound):
            self.store.jobs.retry(job, MAX_ATTEMPTS)
            assert was in (Status.FAILED, Status.CANCELLED, Status.EXPIRED)
            self._set(job, deadline_at=1e12)

    @rule(job=known)
    def delete(self, job: str) -> None:
        with suppress(NotFound):
            self.store.jobs.delete(job)
            self.deleted.add(job)

    @rule(worker=st.integers(0, CLAIMERS - 1))
    def worker_dies(self, worker: int) -> None:
        self.store.claims.release(f"w{worker}")
        assert all(job.worker != f"w{worker}" for job in self._all() if job.status is Status.RUNNING)

    @invariant()
    def the_shares_are_exact(self) -> None:
        """The queue's sums count what is queued, whatever length the plans decide."""
        waiting = [job for job in self._all() if job.status is Status.QUEUED]
        use = self.store.backlog.use("")
        assert (use.jobs, round(use.audio_s, 3)) == (len(waiting), round(sum(job.audio_seconds for job in waiting), 3))

    @invariant()
    def every_change_was_a_legal_move(self) -> None:
        """From what was seen before each state must be reachable; attempts and versions never fall; audio is one attempt's."""
        found = {job.id: job for job in self._all()}
        assert not self.deleted & set(found)
        for job in found.values():
            before = self.seen.get(job.id)
            if before is not None:
                assert job.status is before.status or job.status in _reachable(before.status), (
                    before.status,
                    job.status,
                )
                assert job.version >= before.version
                assert job.attempt >= before.attempt
            assert bool(job.audio) == (job.status is Status.SUCCEEDED)
            if job.audio:
                assert job.audio[0].seed == self.published[job.id] == job.attempt
            assert (job.worker is not None) or job.status is not Status.RUNNING
            assert not job.unplanned or job.status not in (Status.RUNNING, Status.SUCCEEDED)
            self._check_plan(job)
        self.seen = found

    def _check_plan(self, job: Job) -> None:
        """A queued job without its plan has one in the making; nobody makes one for a job that has ended."""
        with suppress(NotFound):
            plan = self.store.plans.of_job(job.id)
            assert plan.state.final == (job.status is not Status.QUEUED or not job.unplanned)
            assert (plan.state is PlanState.DONE) == (not job.unplanned)

    def _is_done(self, task: PlanTask) -> bool:
        """Whether this very attempt has published the plan."""
        with suppress(NotFound):
            plan = self.store.plans.get(task.id)
            return plan.state is PlanState.DONE and plan.attempt == task.attempt
        return False

    def _holds(self, claim: Job) -> bool:
        return any(
            job.id == claim.id and job.attempt == claim.attempt and job.status is Status.RUNNING for job in self._all()
        )

    def _state(self, job: str) -> Status | None:
        return next((found.status for found in self._all() if found.id == job), None)

    def _all(self) -> list[Job]:
        return self.store.jobs.page(limit=1000)

    def _set(self, job: str, **values: float) -> None:
        with self.store.database.write() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == job).values(values))


def _one_of(claimed: list[Job], index: int) -> Job | None:
    return claimed[index % len(claimed)] if claimed else None


def _reachable(state: Status) -> set[Status]:
    """What one rule may lead to: it can make two moves, as when a lost lease is given up and the job claimed again."""
    once = set(MOVES[state])
    return once | {target for middle in once for target in MOVES[middle]}


@pytest.fixture
def machine(store: Store) -> Iterator[type[Queue]]:
    """The machine on each database."""
    with ExitStack():
        yield type("QueueOnDatabase", (Queue,), {"store": store})


@pytest.mark.timeout(300)
def test_no_sequence_of_events_makes_an_illegal_move(machine: type[Queue]) -> None:
    """Whatever clients, workers, time and death do, states move as the table says and a job is published once."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_the_table_names_every_state_and_ends_where_it_should() -> None:
    """Every state has its moves, only a success is for ever, and nothing moves to where it is."""
    assert set(MOVES) == set(Status)
    assert [state for state in Status if not MOVES[state]] == [Status.SUCCEEDED]
    assert all(state not in targets for state, targets in MOVES.items())

"""What goes wrong while a worker plans: each fault has its own clear end, and nothing is lost."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app.artifacts import Artifacts
from serve_app.config import QueueArgs
from serve_app.engine.planner.orders import order
from serve_app.engine.planner.protocol import OnToken, PlannerFacts, Wishes
from serve_app.engine.planner.simulated import SimulatedPlanner
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import CorruptFile, LoadError, OutOfDeviceMemory, WrongTensors
from serve_app.jobs import Job, Status, WorkerPhase
from serve_app.music import MusicRequest
from serve_app.music.plan import Plan
from serve_app.store import NewPlan, PlanState, Store
from serve_app.store.jobs import Admission
from serve_app.weights import Report
from serve_app.worker.planner_in_worker import PlannerInWorker
from serve_app.worker.worker import Worker, WorkerOptions
from tests.support.helpers import eventually
from tests.support.running import shared_encoders, simulated

QUEUE = QueueArgs(lease_s=30, max_attempts=2)


class Planner(SimulatedPlanner):
    """Fails once with each of `faults`, in their order, then plans. With `gate`, it plans when that is set."""

    def __init__(self, *faults: Exception, gate: threading.Event | None = None) -> None:
        super().__init__(simulated(simulated={"step_s": 0.0, "plan_s": 0.0}))
        self._faults = list(faults)
        self._gate = gate
        self.planning = threading.Event()
        """Set once it has begun to plan."""

    def plan(self, wishes: Wishes, on_token: OnToken, stopped: Callable[[], bool]) -> Plan:
        self.planning.set()
        if self._faults:
            raise self._faults.pop(0)
        while self._gate is not None and not self._gate.wait(0.01) and not stopped():
            on_token("codes", 1, 5)
        return super().plan(wishes, on_token, stopped)


class Broken(SimulatedPlanner):
    """Cannot be loaded."""

    def __init__(self, error: LoadError) -> None:
        super().__init__(simulated())
        self._error = error

    def load(self, report: Report) -> PlannerFacts:
        report("load", None, "the planner")
        raise self._error


@contextmanager
def working(store: Store, folder: Path, planner: SimulatedPlanner) -> Iterator[Worker]:
    worker = new_worker(store, folder, planner)
    worker.start()
    try:
        yield worker
    finally:
        worker.drain()


def new_worker(store: Store, folder: Path, planner: SimulatedPlanner) -> Worker:
    artifacts = Artifacts((folder / "audio").as_uri())
    options = WorkerOptions(planner=PlannerInWorker(planner, 2))
    engine = SimulatedEngine("m", simulated(0.0))
    return Worker("m", engine, store, artifacts, QUEUE, options=options, encoders=shared_encoders())


def planned_job(store: Store) -> Job:
    request = MusicRequest(prompt="piano", model="m", seed=3, duration=1.0, thinking="codes", format="flac")
    plan = NewPlan(order(Wishes("piano", duration=1.0, seed=3)), 1.0)
    admission = Admission(plan=plan)
    return store.jobs.submit(request, owner="", deadline_s=600, max_attempts=2, admission=admission)[0]


def ended(store: Store, job: Job) -> Job:
    return eventually(lambda: found if (found := store.jobs.get(job.id)).status.final else None)


def test_too_little_memory_ends_one_job_only(sqlite_store: Store, tmp_path: Path) -> None:
    """A job whose plan does not fit into the memory fails with that error; the worker plans and renders the next."""
    with working(sqlite_store, tmp_path, Planner(OutOfDeviceMemory("no room for the plan"))):
        first = ended(sqlite_store, planned_job(sqlite_store))
        second = ended(sqlite_store, planned_job(sqlite_store))

    assert (first.status, first.error and first.error.code) == (Status.FAILED, "out_of_device_memory")
    assert (second.status, second.attempt) == (Status.SUCCEEDED, 1)


def test_a_device_that_fails_while_planning_ends_its_worker(sqlite_store: Store, tmp_path: Path) -> None:
    """The plan waits for another worker and loses no attempt; the worker says why it has stopped."""
    with working(sqlite_store, tmp_path, Planner(RuntimeError("CUDA error: an illegal memory access"))) as broken:
        job = planned_job(sqlite_store)
        eventually(lambda: not broken.alive)
        row = eventually(lambda: next((row for row in sqlite_store.workers.seen() if row.error), None))
        eventually(lambda: sqlite_store.plans.of_job(job.id).state is PlanState.WAITING)
        waiting = sqlite_store.plans.of_job(job.id)
        with working(sqlite_store, tmp_path, Planner()):
            done = ended(sqlite_store, job)

    assert (row.phase, row.error and row.error["code"]) == (WorkerPhase.FAILED, "device_lost")
    assert waiting.max_attempts == 3
    assert done.status is Status.SUCCEEDED
    assert sqlite_store.plans.of_job(job.id).attempt == 2


def test_a_cancelled_job_stops_its_planner(sqlite_store: Store, tmp_path: Path) -> None:
    """Cancelling a job in the middle of its plan ends the planning, which is charged, and frees the planner for the next."""
    gate = threading.Event()
    planner = Planner(gate=gate)
    with working(sqlite_store, tmp_path, planner):
        job = planned_job(sqlite_store)
        eventually(planner.planning.is_set)
        sqlite_store.jobs.cancel(job.id)
        charged = eventually(lambda: sqlite_store.plans.of_job(job.id).gpu_s)
        gate.set()
        after = ended(sqlite_store, planned_job(sqlite_store))

    assert sqlite_store.jobs.get(job.id).status is Status.CANCELLED
    assert charged > 0
    assert after.status is Status.SUCCEEDED


def test_a_worker_that_ends_publishes_the_plans_in_the_making(sqlite_store: Store, tmp_path: Path) -> None:
    """A plan that was begun is finished before the worker leaves, so another worker need only render the song."""
    gate = threading.Event()
    planner = Planner(gate=gate)
    worker = new_worker(sqlite_store, tmp_path, planner)
    worker.start()
    job = planned_job(sqlite_store)
    eventually(planner.planning.is_set)
    draining = threading.Thread(target=worker.drain)
    draining.start()
    gate.set()
    draining.join()
    plan = sqlite_store.plans.of_job(job.id)

    assert plan.result is not None
    assert plan.attempt == 1
    assert sqlite_store.jobs.get(job.id).unplanned is False


@pytest.mark.parametrize("error", [CorruptFile("model.safetensors is corrupt"), WrongTensors("another vocabulary")])
def test_a_planner_that_cannot_be_loaded_is_the_workers_failure(
    sqlite_store: Store, tmp_path: Path, error: LoadError
) -> None:
    """The worker shows the planner's error and claims nothing; its jobs wait for a worker that can plan."""
    job = planned_job(sqlite_store)
    worker = new_worker(sqlite_store, tmp_path, Broken(error))
    with pytest.raises(type(error)):
        worker.start()
    [row] = sqlite_store.workers.seen()
    waiting = sqlite_store.jobs.get(job.id)
    with working(sqlite_store, tmp_path, Planner()):
        done = ended(sqlite_store, job)

    assert (row.phase, row.error and row.error["code"]) == (WorkerPhase.FAILED, error.code)
    assert (waiting.status, waiting.unplanned, waiting.attempt) == (Status.QUEUED, True, 0)
    assert done.status is Status.SUCCEEDED

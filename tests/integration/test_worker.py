"""The worker: phases, claims, publishing and draining, with real stores and engines that fail on demand."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import soundfile

from serve_app import errors
from serve_app.artifacts import Artifacts
from serve_app.audio import Song
from serve_app.config import QueueArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.protocol import NO_INPUTS, Engine, OnStep, SongInputs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.jobs import Job, JobFailure, Status
from serve_app.music import SELF_TEST, MusicRequest
from serve_app.store import Store
from serve_app.worker.worker import Worker
from tests.support.helpers import eventually
from tests.support.migrated import migrate
from tests.support.running import shared_encoders, simulated

QUEUE = QueueArgs(lease_s=60)


@dataclass
class Bench:
    """A store, an artifact folder, and workers that are drained at the end."""

    store: Store
    artifacts: Artifacts
    workers: list[Worker]

    def start(self, engine: Engine | None = None, queue: QueueArgs = QUEUE, step_s: float = 0.01) -> Worker:
        worker = Worker(
            "m",
            engine or SimulatedEngine("m", simulated(step_s)),
            self.store,
            self.artifacts,
            queue,
            encoders=shared_encoders(),
        )
        self.workers.append(worker)
        worker.start()
        return worker

    def submit(self, max_attempts: int = 2, **fields: object) -> Job:
        request = {"prompt": "piano", "model": "m", "seed": 1, "duration": 1.0, "format": "wav", **fields}
        return self.store.jobs.submit(
            MusicRequest.model_validate(request), owner="", deadline_s=600, max_attempts=max_attempts
        )[0]

    def ended(self, job: Job) -> Job:
        return eventually(lambda: found if (found := self.store.jobs.get(job.id)).status.final else None)

    def phase(self, worker: Worker) -> str:
        return next((row.phase for row in self.store.workers.seen() if row.id == worker.id), "gone")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A store, an artifact folder, and a way to start workers."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    migrate(store)
    bench = Bench(store, Artifacts((tmp_path / "audio").as_uri()), [])
    yield bench
    for worker in bench.workers:
        worker.drain()
    store.close()


class Faulty(SimulatedEngine):
    """The simulated engine, with a hook before each song."""

    def __init__(self, before: Callable[[], None], step_s: float = 0.01) -> None:
        super().__init__("m", simulated(step_s))
        self._before = before

    def generate(self, *args: object, **kwargs: object) -> Iterator[Song]:
        if SELF_TEST not in args:
            self._before()
        return super().generate(*args, **kwargs)  # type: ignore[arg-type]


def raiser(*failures: Exception | None) -> Callable[[], None]:
    """Raises the given failures in turn; None, and the end of the list, raise nothing."""
    remaining = list(failures)

    def before() -> None:
        if remaining and (failure := remaining.pop(0)):
            raise failure

    return before


def test_a_worker_plays_the_real_pipeline_from_claim_to_file(bench: Bench, engine: AceStepEngine) -> None:
    """A job of two variations ends with two different files of the right length."""
    bench.start(engine)
    job = bench.ended(bench.submit(variations=2, duration=2.0, format="flac"))
    assert job.status is Status.SUCCEEDED, job.error
    sounds = [soundfile.read(io.BytesIO(bench.artifacts.get(file.key)))[0] for file in job.audio]
    assert [sound.shape for sound in sounds] == [(96_000, 2)] * 2
    assert (sounds[0] != sounds[1]).any()
    assert [file.seed for file in job.audio] == [1, 2]


def test_a_cut_prompt_is_in_the_jobs_warnings(bench: Bench, engine: AceStepEngine) -> None:
    """The job's warnings list what the model did not read and what it ignores."""
    bench.start(engine)
    job = bench.ended(bench.submit(prompt="piano " * 400, guidance_scale=5.0))
    assert any("prompt was cut" in warning for warning in job.warnings)
    assert any("guidance_scale" in warning for warning in job.warnings)


def test_phases_are_reported_up_to_idle_and_the_row_goes_with_the_worker(bench: Bench) -> None:
    """A worker is idle when it is ready, and its row is removed when it has drained."""
    worker = bench.start()
    eventually(lambda: bench.phase(worker) == "idle")
    worker.drain()
    assert bench.phase(worker) == "gone"


def test_a_model_that_cannot_be_loaded_says_why(bench: Bench) -> None:
    """The failure is raised and recorded in the worker's row with its code and phase."""

    class Broken(SimulatedEngine):
        def load(self, report: Callable[[str, float | None, str], None]) -> NoReturn:
            report("load", 0.5, "halfway")
            raise errors.CorruptFile("model.safetensors is cut")

    with pytest.raises(errors.CorruptFile):
        bench.start(Broken("m", simulated()))
    (row,) = bench.store.workers.seen()
    assert (row.phase, row.error) == (
        "failed",
        {"code": "corrupt_file", "message": "model.safetensors is cut", "phase": "load"},
    )


def test_the_next_job_starts_while_the_last_is_encoded(bench: Bench) -> None:
    """The device does not wait for encoding: the second job runs before the first has ended."""
    bench.start(step_s=0.0)
    first = bench.submit(format="mp3", duration=120.0)
    second = bench.submit(format="wav")
    eventually(lambda: bench.store.jobs.get(second.id).started_at)
    assert bench.store.jobs.get(first.id).status is Status.RUNNING
    assert bench.ended(first).status is bench.ended(second).status is Status.SUCCEEDED


def test_a_retryable_failure_is_tried_again(bench: Bench) -> None:
    """A retryable failure costs an attempt, and the next attempt succeeds."""
    bench.start(Faulty(raiser(errors.BadAudio("NaN"))))
    job = bench.ended(bench.submit())
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 2)


def test_an_unforeseen_failure_ends_the_job_and_not_the_worker(bench: Bench) -> None:
    """An unexpected error fails the job with its cause, and the worker generates the next one."""
    bench.start(Faulty(raiser(ZeroDivisionError("by zero"))))
    failed = bench.ended(bench.submit())
    good = bench.ended(bench.submit())
    assert failed.status is Status.FAILED
    assert failed.error == JobFailure("generation_failed", "ZeroDivisionError: by zero")
    assert good.status is Status.SUCCEEDED


def test_a_worker_whose_device_is_lost_takes_no_other_job(bench: Bench) -> None:
    """The job returns to the queue, and the worker reports itself dead so that Serve replaces it."""
    lost = errors.DeviceLost("cuda:0 failed: an illegal memory access was encountered")
    worker = bench.start(Faulty(raiser(lost)))
    job = bench.submit()
    eventually(lambda: not worker.alive)
    assert (bench.store.jobs.get(job.id).status, bench.store.jobs.get(job.id).attempt) == (Status.QUEUED, 1)
    bench.start()
    assert bench.ended(job).status is Status.SUCCEEDED


def test_a_cancelled_job_publishes_nothing(bench: Bench) -> None:
    """A cancelled job leaves no file and no result, and the next job runs."""
    worker = bench.start(step_s=0.1)
    job = bench.submit(steps=200)
    eventually(lambda: (bench.store.jobs.get(job.id).progress or {}).get("step", 0) >= 1)
    bench.store.jobs.cancel(job.id)
    eventually(lambda: bench.phase(worker) == "idle")
    assert bench.store.jobs.get(job.id).audio == ()
    assert list(bench.artifacts.list(job.id)) == []
    assert bench.ended(bench.submit()).status is Status.SUCCEEDED


def test_heartbeats_keep_a_long_job_from_being_given_away(bench: Bench) -> None:
    """A job that runs three times as long as its lease is not swept."""
    bench.start(queue=QueueArgs(lease_s=4), step_s=0.9)
    job = bench.submit(steps=14)
    while not bench.store.jobs.get(job.id).status.final:
        bench.store.time_limits.enforce(3600)
        time.sleep(0.2)
    assert (bench.store.jobs.get(job.id).status, bench.store.jobs.get(job.id).attempt) == (Status.SUCCEEDED, 1)


def test_draining_ends_the_job_in_hand_and_takes_no_other(bench: Bench) -> None:
    """While a worker drains, its running job is published and the waiting one stays queued."""
    worker = bench.start(step_s=0.1)
    running = bench.submit(steps=10)
    waiting = bench.submit()
    eventually(lambda: bench.store.jobs.get(running.id).status is Status.RUNNING)
    worker.drain()
    assert bench.store.jobs.get(running.id).status is Status.SUCCEEDED
    assert bench.store.jobs.get(waiting.id).status is Status.QUEUED


def test_a_full_artifact_store_delays_a_song_and_does_not_lose_it(bench: Bench, tmp_path: Path) -> None:
    """A song waits while files cannot be written, and is published when they can."""
    worker = bench.start(step_s=0.05)
    job = bench.submit(steps=20)
    eventually(lambda: bench.store.jobs.get(job.id).status is Status.RUNNING)
    folder = tmp_path / "audio"
    folder.rename(tmp_path / "away")
    folder.write_text("a file where the folder was")
    eventually(lambda: (bench.store.jobs.get(job.id).progress or {}).get("stage") == "storing")
    eventually(lambda: bench.phase(worker) == "idle")
    assert bench.store.jobs.get(job.id).status is Status.RUNNING
    folder.unlink()
    (tmp_path / "away").rename(folder)
    assert bench.ended(job).status is Status.SUCCEEDED


def test_idle_workers_share_the_jobs_out(bench: Bench) -> None:
    """Three jobs run at the same time on three idle workers."""
    for _ in range(3):
        bench.start(step_s=0.2)
    made = [bench.submit(steps=5) for _ in range(3)]
    eventually(lambda: all(bench.store.jobs.get(job.id).status is Status.RUNNING for job in made))
    assert len({bench.store.jobs.get(job.id).worker for job in made}) == 3


class TwoSlots(SimulatedEngine):
    """Starts the jobs "fails" and "succeeds" only when both run, and then fails the first."""

    slots = 2

    def __init__(self) -> None:
        super().__init__("m", simulated(0.05))
        self._both_run = threading.Barrier(2)

    def generate(
        self,
        request: MusicRequest,
        on_step: OnStep,
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        if request.prompt in ("fails", "succeeds"):
            self._both_run.wait(60)
        if request.prompt == "fails":
            raise ZeroDivisionError("by zero")
        return super().generate(request, on_step, stopped, inputs)


def test_an_engine_with_two_slots_runs_two_jobs_at_once(bench: Bench) -> None:
    """One worker runs two jobs at once, and the failure of one does not affect the other."""
    worker = bench.start(TwoSlots())
    failing = bench.submit(prompt="fails", max_attempts=1)
    succeeding = bench.submit(prompt="succeeds", max_attempts=1)

    failed = bench.ended(failing)
    succeeded = bench.ended(succeeding)
    later = [bench.ended(job) for job in [bench.submit() for _ in range(3)]]

    assert (failed.status, failed.error) == (
        Status.FAILED,
        JobFailure("generation_failed", "ZeroDivisionError: by zero"),
    )
    assert (succeeded.status, succeeded.attempt) == (Status.SUCCEEDED, 1)
    assert failed.worker == succeeded.worker == worker.id
    assert {job.status for job in later} == {Status.SUCCEEDED}
    assert worker.alive


def test_draining_a_worker_with_two_slots_ends_both_jobs(bench: Bench) -> None:
    """Both running jobs are published, and the worker's row shows how many jobs it still runs."""
    engine = TwoSlots()
    worker = bench.start(engine)
    jobs = [bench.submit(prompt="succeeds", steps=10) for _ in range(2)]
    eventually(lambda: [row.detail for row in bench.store.workers.seen()] == ["2 jobs"])
    worker.drain()
    assert {bench.store.jobs.get(job.id).status for job in jobs} == {Status.SUCCEEDED}


def test_a_waiting_worker_starts_at_once(bench: Bench) -> None:
    """An idle worker starts a submitted job within a small part of a second."""
    bench.start(step_s=0.0)
    gaps = []
    for _ in range(20):
        job = bench.ended(bench.submit())
        gaps.append((job.started_at or 0) - job.created_at)
    print(f"submit to start: median {sorted(gaps)[10] * 1000:.1f} ms, worst {max(gaps) * 1000:.1f} ms")
    assert threading.active_count() < 50


# --- Accounts ---------------------------------------------------------------------------------------------------------


def test_all_of_a_workers_device_time_is_reported_by_use(bench: Bench) -> None:
    """Every second of a worker's life counts as loading, generating or idle, and generating time is charged to the job."""
    began = time.monotonic()
    worker = bench.start(step_s=0.05)
    job = bench.ended(bench.submit(steps=10))
    eventually(lambda: bench.phase(worker) == "idle")
    worker.drain()
    total_s = time.monotonic() - began
    (use,) = bench.store.costs.workers(1).values()
    assert 0.8 * total_s < use.total_s <= total_s
    assert use.generating_s >= job.gpu_s - 0.01 >= 0.49
    assert use.idle_s > 0


def test_an_attempt_that_gives_no_song_is_on_the_account(bench: Bench) -> None:
    """Device time of cancelled and failed jobs is charged to their key."""
    bench.start(Faulty(raiser(None, errors.GenerationError("no")), step_s=0.05))
    cancelled = bench.submit(steps=100)
    eventually(lambda: (bench.store.jobs.get(cancelled.id).progress or {}).get("step", 0) >= 4)
    bench.store.jobs.cancel(cancelled.id)
    failed = bench.ended(bench.submit(max_attempts=1))
    assert failed.status is Status.FAILED
    eventually(lambda: bench.store.jobs.get(failed.id).gpu_s > 0)
    (account,) = bench.store.costs.owners(1)
    assert (account.songs, account.gpu_s) == (0, 0.0)
    assert account.wasted_s > 0.2
    assert bench.store.jobs.get(cancelled.id).gpu_s > 0.2

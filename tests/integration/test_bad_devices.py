"""Workers whose device fails, processes of other namespaces, and a machine that slept."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.audio import Song
from serve_app.background import sweeper
from serve_app.engine.protocol import NO_INPUTS, SongInputs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import BadAudio, DeviceLost, OutOfDeviceMemory
from serve_app.jobs import JobFailure
from serve_app.music import MusicRequest
from serve_app.processes import Process
from serve_app.store import Store
from serve_app.store.tables import jobs as job_table
from serve_app.worker.failures import diagnose
from serve_app.worker.worker import Worker
from tests.support.engines import BrokenDevice
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.queue import claim, submit
from tests.support.running import Service, running, shared_encoders


@pytest.mark.fault("E4")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        ValueError("no such shape"),
    ],
)
def test_a_failing_device_costs_no_job(tmp_path: Path, error: Exception) -> None:
    """Beside a worker whose device fails every song, all jobs succeed, and health shows why that worker left."""
    with running(tmp_path) as service:
        model = service.args.models["ace-step"]
        engine = BrokenDevice("ace-step", model, error)
        bad = Worker(
            "ace-step", engine, service.store, service.artifacts, service.args.queue, encoders=shared_encoders()
        )
        bad.start()
        jobs = [service.submit(duration=1, steps=1)["id"] for _ in range(20)]
        ended = [service.ended(job) for job in jobs]
        eventually(lambda: not bad.alive)
        failed = [row for row in service.client.get("/v1/health").json()["workers"] if row["phase"] == "failed"]
        bad.drain()

        assert {job["state"] for job in ended} == {"succeeded"}
        assert [row["error"]["code"] for row in failed] == ["device_lost"]


class BrokenFor(SimulatedEngine):
    """Loads normally, and fails with a lost device on every song whose prompt asks for it."""

    def generate(
        self,
        request: MusicRequest,
        on_step: Callable[[str, int, int], None],
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        if "poison" in request.prompt:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().generate(request, on_step, stopped, inputs)


def replaced_until_it_waits(service: Service, jobs: list[str]) -> int:
    """Replaces each worker that lost its device, as Serve does, until the breaker is open or the jobs have ended."""
    engine = BrokenFor("ace-step", service.args.models["ace-step"])
    host = Process.this().host
    for count in range(1, 30):
        worker = Worker(
            "ace-step", engine, service.store, service.artifacts, service.args.queue, encoders=shared_encoders()
        )
        worker.start()
        eventually(lambda w=worker: not w.alive or all(service.store.jobs.get(job).status.final for job in jobs))  # type: ignore[misc]
        ended = worker.alive
        worker.drain()
        if ended or service.store.load_attempts.breaker("ace-step", "", service.args.breaker, host).is_open:
            return count
    return 30


@pytest.mark.fault("E4")
def test_a_device_that_loads_well_and_fails_jobs_is_not_tried_for_ever(tmp_path: Path) -> None:
    """After three jobs lost their device the host's breaker opens; no job has failed, and a reset tries again."""
    with running(tmp_path, workers=0) as service:
        jobs = [service.submit(prompt="poison", duration=1, steps=1)["id"] for _ in range(6)]
        workers = replaced_until_it_waits(service, jobs)
        said = service.client.get("/readyz").json()["reason"]
        states = {service.job(job)["state"] for job in jobs}
        service.store.load_attempts.reset("ace-step")

        assert workers == 5  # the first two were tried twice
        assert said.startswith("ace-step: the device fails under jobs: The device failed: RuntimeError: CUDA error")
        assert states == {"queued"}
        assert not service.store.load_attempts.breaker("ace-step", "", service.args.breaker).is_open


@pytest.mark.fault("E4")
def test_a_job_that_ends_every_device_stops_no_host(tmp_path: Path) -> None:
    """A job that breaks every device reaches seven at most; others run meanwhile, and no breaker opens."""
    with running(tmp_path, workers=0) as service:
        poison = service.submit(prompt="poison", duration=1, steps=1)["id"]
        others = [service.submit(duration=1, steps=1)["id"] for _ in range(6)]
        workers = replaced_until_it_waits(service, [poison, *others])
        breaker = service.store.load_attempts.breaker("ace-step", "", service.args.breaker, Process.this().host)

        assert service.job(poison)["error"]["code"] == "device_lost"
        assert {service.job(job)["state"] for job in others} == {"succeeded"}
        assert workers <= 8
        assert not breaker.is_open


@pytest.mark.fault("E4")
@pytest.mark.parametrize("error", [ValueError("no such shape"), BadAudio("silence")])
def test_a_job_that_fails_by_itself_costs_no_worker(error: Exception) -> None:
    """If the self-test succeeds after a failure, the failure is the job's own, however often it occurs."""
    played: list[bool] = []

    judged = [diagnose(error, lambda: played.append(True)) for _ in range(5)]

    assert judged == [error] * 5
    assert len(played) == 5


@pytest.mark.fault("E4")
def test_a_failure_that_the_request_explains_plays_no_test() -> None:
    """A failure that the engine attributes to the request starts no self-test."""
    error = OutOfDeviceMemory("too long")

    assert diagnose(error, lambda: pytest.fail("nothing is to be played")) is error


@pytest.mark.fault("E4")
def test_an_attempt_that_a_device_ended_is_not_counted_for_ever(store: Store) -> None:
    """A job with one attempt returns to the queue after a lost device, and fails after five of them."""
    job = submit(store, max_attempts=1)
    attempts = 0
    while (held := store.claims.take("w", "m", 60)) is not None:
        attempts += 1
        store.claims.fail(held, DeviceLost("gone"))

    assert attempts == 5
    assert store.jobs.get(job.id).error == JobFailure("device_lost", "gone")


@pytest.mark.fault("A9")
def test_a_process_of_another_pid_namespace_is_never_taken_for_dead() -> None:
    """A pid of another namespace is never judged, whatever the host is called."""
    me = Process.this()
    host = me.host.rpartition("/")[0]

    assert not Process(host, me.pid, me.born - 1).is_dead  # a row of the first version
    assert not Process(f"{host}/pid:[1]", me.pid, me.born - 1).is_dead
    assert Process(me.host, me.pid, me.born - 1).is_dead


@pytest.mark.fault("A9")
def test_a_container_that_shares_the_host_name_leaves_our_process_alone() -> None:
    """A live process is not considered dead from inside another PID namespace."""
    me = Process.this()
    program = f"from serve_app.processes import Process; print(Process({me.host!r}, {me.pid}, {me.born}).is_dead)"
    unshared = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]

    ran = subprocess.run(unshared, capture_output=True, text=True)

    if ran.returncode and "unshare" in ran.stderr:
        pytest.skip(f"no PID namespace can be made here: {ran.stderr.strip()}")
    assert ran.stdout.strip() == "False"


@pytest.mark.fault("E14")
def test_a_machine_that_slept_gives_up_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a pause of all processes the sweep waits one lease before it ends any."""
    slept_s = 0.0
    awake = sweeper._suspend_aware_clock
    monkeypatch.setattr(sweeper, "_suspend_aware_clock", lambda: awake() + slept_s)
    with running(tmp_path, workers=0, queue={"lease_s": 4}) as service:
        submit(service.store, model="ace-step")
        claim(service.store, model="ace-step", lease_s=0)
        eventually(lambda: service.store.jobs.page(states=["queued"]))  # by now it gives leases up
        held = claim(service.store, model="ace-step", lease_s=600)
        slept_s = 40.0
        eventually(lambda: "suspended for 40 s" in caplog.text)
        with service.store.database.write() as connection:
            connection.execute(job_table.update().where(job_table.c.id == held.id).values(lease_until=0))
        looked = time.monotonic() + 2 * sweeper.EVERY_S
        eventually(lambda: time.monotonic() > looked)

        assert service.job(held.id)["state"] == "running"
        assert eventually(lambda: service.job(held.id)["state"] == "queued")  # nobody spoke up


@pytest.mark.fault("E14")
def test_a_sleep_counts_for_no_running_jobs_limits(store: Store) -> None:
    """An hour of machine sleep counts toward neither the run limit nor the deadline; an hour of running does."""
    submit(store)
    held = claim(store)
    hours_ago = {"started_at": job_table.c.started_at - 7200, "deadline_at": job_table.c.deadline_at - 7200}
    with store.database.write() as connection:
        connection.execute(job_table.update().values(hours_ago))

    store.time_limits.extend(7200)

    assert store.time_limits.enforce(3600) == 0
    with store.database.write() as connection:
        connection.execute(job_table.update().values(hours_ago))
    assert store.time_limits.enforce(3600) == 1
    assert store.jobs.get(held.id).status.final


SERVICE = """
import sys, threading
from pathlib import Path
from tests.support.running import running, simulated
with running(Path(sys.argv[1]), {"m": simulated(0.1)}, workers=0, queue={"lease_s": 6}) as service:
    print(service.url, service.args.resolved_database_url, flush=True)
    threading.Event().wait()
"""

WORKER = """
import sys
from serve_app.artifacts import Artifacts
from serve_app.config import QueueArgs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.store import Store
from serve_app.worker.worker import Worker
from tests.support.running import simulated
worker = Worker("m", SimulatedEngine("m", simulated(0.1)), Store(sys.argv[1]), Artifacts(sys.argv[2]), QueueArgs(lease_s=6))
worker.start()
worker.join()
"""


@pytest.mark.long
@pytest.mark.fault("E14")
def test_a_real_pause_of_all_processes_costs_no_attempt(tmp_path: Path) -> None:
    """API and worker are stopped for two leases: the song is still made in its first attempt."""
    audio = (tmp_path / "audio").as_uri()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    api = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    machine = [api]
    try:
        assert api.stdout is not None
        url, database = api.stdout.readline().split()
        machine.append(subprocess.Popen([sys.executable, "-c", WORKER, database, audio], env=environment, text=True))
        job = httpx.post(f"{url}/v1/jobs", json={"prompt": "x", "duration": 1, "steps": 50}, timeout=30).json()["id"]
        eventually(lambda: (_job(url, job)["progress"] or {}).get("step", 0) >= 5)

        for process in machine:
            process.send_signal(signal.SIGSTOP)
        time.sleep(12)  # the pause itself
        for process in machine:
            process.send_signal(signal.SIGCONT)

        ended = eventually(lambda: found if (found := _job(url, job))["finished_at"] else None)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
    finally:
        for process in machine:
            process.kill()
            process.wait()
        assert api.stdout is not None
        api.stdout.close()


def _job(url: str, job: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/v1/jobs/{job}", timeout=30).json())

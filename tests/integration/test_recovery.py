"""Recovery on both databases: dead workers, time limits, retries, failed loads and the crash breaker."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve_app.api.placement import CARD_LABEL
from serve_app.config import BreakerArgs
from serve_app.errors import Conflict
from serve_app.jobs import Status
from serve_app.processes import Process
from serve_app.ray_adapters.cluster import Node
from serve_app.store import Store
from serve_app.store.tables import jobs, loads
from tests.support.failure_codes import provoked
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.queue import LEASE_S, claim, submit
from tests.support.running import Service, running, simulated

BREAKER = BreakerArgs(open_after=3, backoff_s=10, max_backoff_s=30)
RUN_LIMIT_S = 3600.0

WORKER = """
import sys
from serve_app.artifacts import Artifacts
from serve_app.config import QueueArgs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.store import Store
from serve_app.worker.worker import Worker
from tests.support.running import simulated
store = Store(sys.argv[1])
worker = Worker("m", SimulatedEngine("m", simulated(0.2)), store, Artifacts("memory://"), QueueArgs(lease_s=600))
worker.start()
worker.join()
"""


# --- Death ------------------------------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_is_noticed_long_before_its_lease_is_over(store: Store, store_url: str) -> None:
    """The job of a killed worker is queued again when its host checks for dead processes, before its lease ends."""
    job = submit(store, steps=200)
    root = str(ROOT)
    process = subprocess.Popen([sys.executable, "-c", WORKER, store_url], env={**os.environ, "PYTHONPATH": root})
    try:
        eventually(lambda: (store.jobs.get(job.id).progress or {}).get("step", 0) >= 1)
        store.collect_dead_processes()
        assert store.jobs.get(job.id).status is Status.RUNNING
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    store.collect_dead_processes()
    assert (store.jobs.get(job.id).status, store.jobs.get(job.id).attempt) == (Status.QUEUED, 1)
    assert store.workers.seen() == []


def test_a_process_is_known_by_its_birth_and_not_by_its_pid_alone() -> None:
    """A process with the pid of a living one but another start time is dead, and a process of another host is never called dead."""
    me = Process.this()
    assert not me.is_dead
    assert Process(me.host, me.pid, me.born - 1).is_dead
    assert not Process("elsewhere", 1, 1).is_dead


def test_after_the_database_was_away_leases_are_not_given_up_at_once(store: Store) -> None:
    """A sweep with `expire_leases=False` expires jobs at their deadline but keeps every lease."""
    submit(store)
    running = claim(store, lease_s=0.0)
    submit(store, deadline_s=0.0)
    assert store.time_limits.enforce(RUN_LIMIT_S, expire_leases=False) == 1
    assert store.jobs.get(running.id).status is Status.RUNNING


# --- Limits and retries -----------------------------------------------------------------------------------------------


def test_a_run_beyond_its_limit_fails_and_says_which_limit(store: Store) -> None:
    """An attempt that exceeds the run limit fails with `run_limit_exceeded`."""
    submit(store)
    job = claim(store)
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(started_at=job.created_at - 100))
    assert store.time_limits.enforce(run_limit_s=50) == 1
    ended = store.jobs.get(job.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (Status.FAILED, "run_limit_exceeded")
    provoked(
        "run_limit_exceeded",
        "one attempt runs longer than the request's `run_limit_s` or `queue.run_limit_s`",
        ended.error.message,
    )


def test_an_expired_job_says_that_it_was_its_deadline(store: Store) -> None:
    """A job past its deadline is expired, with the code `deadline_exceeded`."""
    job = submit(store, deadline_s=0.0)
    store.time_limits.enforce(RUN_LIMIT_S)
    ended = store.jobs.get(job.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (Status.EXPIRED, "deadline_exceeded")
    provoked("deadline_exceeded", "a job does not end in its `deadline_s`", ended.error.message)


def test_a_retried_job_has_its_deadline_and_attempts_anew(store: Store) -> None:
    """A retry queues an expired job again with a new deadline and new attempts; queued and succeeded jobs cannot be retried."""
    job = submit(store, deadline_s=0.0)
    store.time_limits.enforce(RUN_LIMIT_S)
    with store.database.write() as connection:
        moments = {"created_at": job.created_at - 600, "deadline_at": job.created_at}
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(moments))
    again = store.jobs.retry(job.id, max_attempts=3)
    assert (again.status, again.error, again.id) == (Status.QUEUED, None, job.id)
    assert again.deadline_at - again.created_at == pytest.approx(600)
    assert again.max_attempts == again.attempt + 3
    with pytest.raises(Conflict, match="queued"):
        store.jobs.retry(job.id, max_attempts=3)
    running = claim(store)
    store.claims.publish(running, audio=[], timing={"gpu_s": 1.0}, warnings=[])
    with pytest.raises(Conflict, match="succeeded"):
        store.jobs.retry(job.id, max_attempts=3)


def test_a_requeued_job_starts_before_those_that_came_later(store: Store) -> None:
    """A job that lost its worker keeps its position in the queue."""
    first = submit(store, owner="a")
    for _ in range(3):
        submit(store, owner="b")
    lost = claim(store)
    assert lost.id == first.id
    store.claims.release("w")
    assert claim(store).id == first.id


def test_an_owner_who_asks_for_much_does_not_keep_another_waiting(store: Store) -> None:
    """Behind forty jobs of one owner, two jobs of another owner start among the first five."""
    for _ in range(40):
        submit(store, owner="greedy")
    modest = {submit(store, owner="modest").id for _ in range(2)}
    assert modest <= {claim(store).id for _ in range(5)}


# --- Loads and the breaker --------------------------------------------------------------------------------------------


def fail(store: Store, code: str = "missing_file", host: str | None = None, deployment: str = "d") -> None:
    process = Process.this() if host is None else Process(host, 1, 1)
    load = store.load_attempts.begin("m", deployment, process)
    store.load_attempts.failed(load, code, "vae is missing.", "load")


def test_the_same_failure_again_and_again_opens_the_breaker(store: Store) -> None:
    """Three failures on one host with the same code open the breaker, which has their cause, number and phase."""
    for _ in range(2):
        fail(store, host="a")
    assert not store.load_attempts.breaker("m", "d", BREAKER).is_open
    fail(store, host="a")
    found = store.load_attempts.breaker("m", "d", BREAKER)
    assert found.is_open
    assert (found.runs, found.code, found.message, found.phase) == (3, "missing_file", "vae is missing.", "load")
    assert found.since is not None


def test_a_success_a_new_deployment_and_an_operator_close_it(store: Store) -> None:
    """A successful load, a new deployment and `sophia reset` each set the number of failures to zero."""
    for _ in range(3):
        fail(store)
    assert not store.load_attempts.breaker("m", "another build", BREAKER).is_open
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process.this()))
    assert store.load_attempts.breaker("m", "d", BREAKER).runs == 0
    for _ in range(3):
        fail(store)
    assert store.load_attempts.breaker("m", "d", BREAKER).is_open
    assert store.load_attempts.reset("m") >= 3
    assert store.load_attempts.breaker("m", "d", BREAKER).runs == 0


def test_different_failures_do_not_open_it(store: Store) -> None:
    """Three failures with different codes do not open the breaker."""
    for code in ("missing_file", "disk_full", "hub_unreachable"):
        fail(store, code)
    assert not store.load_attempts.breaker("m", "d", BREAKER).is_open


def test_a_node_pauses_longer_after_each_of_its_failures(store: Store) -> None:
    """The pause before a host's next load doubles with each failure up to its maximum, and other hosts do not wait."""
    kinds_of_failure = ("a", "b", "c", "d")  # four of them, so that the breaker stays closed
    for code, whole_s in zip(kinds_of_failure, (10, 20, 30, 30), strict=True):
        began = time.time()
        fail(store, code, host="bad")
        left_s = store.load_attempts.breaker("m", "d", BREAKER, "bad").retry_in_s
        assert left_s - 0.1 <= whole_s <= left_s + (time.time() - began) + 0.1
    assert store.load_attempts.breaker("m", "d", BREAKER, "good").retry_in_s == 0


def test_a_process_that_dies_while_loading_has_failed(store: Store) -> None:
    """A load whose process has died counts as `load_crashed`; a running load does not."""
    me = Process.this()
    store.load_attempts.begin("m", "d", Process(me.host, me.pid, me.born - 1))
    store.load_attempts.begin("m", "d", me)
    assert store.load_attempts.fail_crashed() == 1
    found = store.load_attempts.breaker("m", "d", BREAKER)
    assert found.code == "load_crashed"
    provoked("load_crashed", "the process dies while it loads", found.message, found.phase)


def test_the_start_up_time_is_measured(store: Store) -> None:
    """The start-up time is the mean of the last successful loads."""
    assert store.load_attempts.startup_s("m") is None
    began = time.time()
    load = store.load_attempts.begin("m", "d", Process.this())
    with store.database.write() as connection:
        connection.execute(loads.update().values(began_at=loads.c.began_at - 40))
    store.load_attempts.succeeded(load)
    passed_s = time.time() - began
    fail(store)
    found_s = store.load_attempts.startup_s("m")
    assert found_s is not None
    assert 40 - 0.1 <= found_s <= 40 + passed_s + 0.1


# --- Explanations for waiting clients ---------------------------------------------------------------------------------


def test_a_waiting_job_and_readyz_report_an_open_breaker(tmp_path: Path) -> None:
    """While the breaker is open, the job, /readyz and /v1/health contain the cause, the number of attempts and what to do."""
    with running(tmp_path, workers=0) as service:
        for _ in range(3):
            load = service.store.load_attempts.begin("ace-step", "", Process.this())
            service.store.load_attempts.failed(
                load, "missing_file", "vae/config.json is missing: fetch it again.", "load"
            )
        waiting = service.job(service.submit()["id"])["waiting_for"]
        assert waiting.startswith(
            "the model cannot be loaded: vae/config.json is missing: fetch it again. 3 attempts since 20"
        )
        assert "not retrying until a changed configuration" in waiting
        ready = service.client.get("/readyz")
        assert (ready.status_code, "cannot be loaded" in ready.json()["reason"]) == (503, True)
        breaker = service.client.get("/v1/health").json()["breakers"]["ace-step"]
        assert (breaker["open"], breaker["load_runs"], breaker["error"]["code"]) == (True, 3, "missing_file")


def test_a_starting_worker_is_reported_with_its_progress(tmp_path: Path) -> None:
    """A waiting job shows the progress of a starting worker, and that the worker hangs if it makes no progress."""
    percents = itertools.count(
        41
    )  # each report makes progress, so that a slow machine hangs no worker before it is seen
    with running(tmp_path, workers=0, queue={"lease_s": 60}, breaker={"hang_s": 1}) as service:
        job = service.submit()["id"]

        def shows_progress() -> bool:
            detail = f"downloading {(percent := next(percents))} % of 6.3 GB"
            report(service, phase="download", detail=detail, progress=percent / 100)
            return bool(service.job(job)["waiting_for"] == f"workers are starting: {detail}")

        assert eventually(shows_progress)
        hung = eventually(lambda: found if "hung" in (found := service.job(job)["waiting_for"]) else None)
        assert "no progress for" in hung
        assert eventually(shows_progress)


def report(service: Service, **values: object) -> None:
    from serve_app.store import WorkerRow

    row = {"id": "w", "model": "ace-step", "node": "n", "process": Process.this(), "device": "", **values}
    service.store.workers.report(WorkerRow(**row))  # type: ignore[arg-type]


def test_a_card_that_the_cluster_lacks_is_named(tmp_path: Path) -> None:
    """A job whose model needs a GPU that no node has names that GPU and the GPUs of the cluster."""
    label = {"ray.io/accelerator-type": "GeForce-RTX-4090"}
    models = {"ace-step": simulated(device="cuda", label_selector=label)}
    nodes = [_node({}, GPU=0), _node({"ray.io/accelerator-type": "NVIDIA-A100"}, GPU=8)]
    with running(tmp_path, models, workers=0, cluster=lambda: nodes) as service:
        waiting = service.job(service.submit()["id"])["waiting_for"]
        assert waiting.startswith(
            "no node has a GPU named GeForce-RTX-4090; the cluster has 2 nodes, 1 with NVIDIA-A100."
        )
        nodes.append(_node(label, GPU=1))
        assert service.job(service.submit()["id"])["waiting_for"] == "no worker of this model is running yet"
        nodes[-1].free["GPU"] = 0  # Ray has given it to a worker that is still importing
        assert service.job(service.submit()["id"])["waiting_for"].startswith("a GPU that fits is in use by a process")
        report(service, phase="draining", node="node")
        assert service.job(service.submit()["id"])["waiting_for"].startswith("the only node that fits is full")
        nodes[-1].total["CPU"] = 0.1
        assert (
            "has as many CPUs as a worker reserves (num_cpus is 0.5)"
            in service.job(service.submit()["id"])["waiting_for"]
        )


def test_a_worker_without_room_for_its_cpus_says_so(tmp_path: Path) -> None:
    """If no node has the CPUs that a worker reserves, the job and /v1/health contain that number."""
    with running(tmp_path, {"m": simulated(num_cpus=4)}, workers=0, cluster=lambda: [_node({}, CPU=2)]) as service:
        told = "no node has as many CPUs as a worker reserves (num_cpus is 4); the cluster has 1 node"
        assert service.job(service.submit()["id"])["waiting_for"] == told
        scale = service.client.get("/v1/health").json()["scale"]["m"]
        assert (scale["pending"], scale["pending_for"]) == (1, told)


def _node(labels: dict[str, str], **resources: float) -> Node:
    total = {"CPU": 8.0, **resources}
    return Node("node", labels, total, dict(total))


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ({}, "no node has a GPU;"),
        ({CARD_LABEL: ["RTX-4090", "RTX-5090"]}, "no node has a GPU named RTX-4090 or RTX-5090;"),
        ({CARD_LABEL: "!in(A100, H100)"}, "no node has a GPU other than A100 or H100;"),
        ({"zone": "!a", CARD_LABEL: "L4"}, "no node has a GPU named L4 on a node with zone other than a;"),
    ],
)
def test_the_nodes_that_would_fit_are_described(tmp_path: Path, selector: dict[str, object], said: str) -> None:
    """Every form of label selector is described in plain English instead of Ray's syntax."""
    models = {"ace-step": simulated(device="cuda", label_selector=selector)}
    nodes = [_node({}, GPU=0), _node({CARD_LABEL: "A100", "zone": "b"}, GPU=8 * bool(selector))]
    with running(tmp_path, models, workers=0, cluster=lambda: nodes) as service:
        waiting = service.job(service.submit()["id"])["waiting_for"]
    assert waiting.startswith(said)


def test_a_job_is_retried_over_http(tmp_path: Path) -> None:
    """POST …/retry queues a cancelled job again, and answers 409 for a succeeded one."""
    with running(tmp_path) as service:
        job = service.submit(steps=200, model="ace-step")["id"]
        service.client.post(f"/v1/jobs/{job}/cancel")
        again = service.client.post(f"/v1/jobs/{job}/retry")
        assert (again.status_code, again.json()["state"]) == (200, "queued")
        assert service.ended(job)["state"] == "succeeded"
        refused = service.client.post(f"/v1/jobs/{job}/retry")
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


def test_a_job_of_a_dead_worker_is_finished_by_the_next(tmp_path: Path) -> None:
    """The API detects a killed worker on its host within seconds, and another worker finishes the job."""
    with running(tmp_path, {"m": simulated(0.02)}, workers=0, queue={"lease_s": 600}) as service:
        job = service.submit(steps=60)["id"]
        root = str(ROOT)
        command = [sys.executable, "-c", WORKER, service.args.resolved_database_url]
        doomed = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root})
        try:
            eventually(lambda: service.job(job)["state"] == "running")
        finally:
            doomed.send_signal(signal.SIGKILL)
            doomed.wait()
        killed = time.monotonic()
        eventually(lambda: service.job(job)["state"] == "queued")
        print(f"a killed worker was noticed after {time.monotonic() - killed:.2f} s, with a lease of 600 s")
        assert service.store.jobs.get(job).attempt == 1
        assert claim(service.store, "other", "m", LEASE_S).attempt == 2

"""Starting, failing, updating and ending, on a real one-node Ray cluster."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

from serve_app.app import build
from serve_app.config import AppArgs
from serve_app.store import Store
from serve_app.store.tables import loads
from tests.support.helpers import eventually

pytestmark = [pytest.mark.timeout(300)]

STEP_S = 0.1
Deploy = Callable[..., Store]


@pytest.fixture
def deploy(one_node: httpx.Client, tmp_path: Path) -> Iterator[Deploy]:
    """Deploys a model with the given settings, and returns the store as an operator sees it."""
    stores: list[Store] = []

    def deploy(wait: bool = True, workers: int = 1, **model: Any) -> Store:
        fixed = {"min_workers": workers, "max_workers": workers}
        settings = {"source": "simulated", "scaling": fixed, "num_cpus": 0.1, **model}
        args = AppArgs.model_validate(
            {"data_dir": tmp_path, "models": {"m": settings}, "breaker": {"open_after": 2, "backoff_s": 0.5}}
        )
        deployed = serve.run if wait else serve._run
        deployed(build(args), name="sophia", route_prefix="/", **({} if wait else {"_blocking": False}))
        eventually(lambda: _get(one_node, "/ping") is not None, 60)
        stores.append(Store(args.resolved_database_url))
        return stores[-1]

    yield deploy
    serve.delete("sophia")
    for store in stores:
        store.close()


def _get(client: httpx.Client, path: str) -> dict[str, Any] | None:
    try:
        answer = client.get(path)
    except httpx.TransportError:
        return None
    return (
        dict(answer.json()) if answer.status_code in (200, 503) and "json" in answer.headers["content-type"] else None
    )


def _submit(client: httpx.Client, **fields: Any) -> str:
    body = {"prompt": "x", "duration": 1, "format": "wav", "steps": 5, **fields}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _ended(client: httpx.Client, job: str) -> dict[str, Any]:
    def final() -> dict[str, Any] | None:
        found = _get(client, f"/v1/jobs/{job}")
        return found if found and found["state"] not in ("queued", "running") else None

    return eventually(final, 120)


def test_jobs_submitted_during_a_slow_load_run_after_it(one_node: httpx.Client, deploy: Deploy) -> None:
    """A slow load is neither killed nor repeated; the job reports that a worker is starting, and then runs."""
    store = deploy(wait=False, simulated={"step_s": 0.01, "load_s": 8})
    job = _submit(one_node)
    told = re.compile(r"workers are starting: simulated: \d+% loaded")
    eventually(lambda: told.match(str((_get(one_node, f"/v1/jobs/{job}") or {}).get("waiting_for"))))
    assert _ended(one_node, job)["state"] == "succeeded"
    with store.database.read() as connection:
        assert len(connection.execute(loads.select()).all()) == 1


def test_a_rolling_update_under_load_loses_no_request_and_cuts_no_job(one_node: httpx.Client, deploy: Deploy) -> None:
    """During a rolling update every request is answered, and every job is done in one attempt."""
    deploy(simulated={"step_s": STEP_S}, workers=2)
    stop = threading.Event()
    jobs: list[str] = []
    failures: list[str] = []

    def keep_submitting() -> None:
        with httpx.Client(base_url=one_node.base_url, timeout=60) as client:
            while not stop.is_set():
                answer = client.post("/v1/jobs", json={"prompt": "x", "duration": 1, "steps": 5, "format": "wav"})
                (jobs if answer.status_code == 202 else failures).append(answer.json().get("id", answer.text))
                time.sleep(0.1)

    client = threading.Thread(target=keep_submitting)
    client.start()
    try:
        eventually(lambda: len(jobs) > 10)
        before = {worker["id"] for worker in one_node.get("/v1/health").json()["workers"]}
        deploy(simulated={"step_s": STEP_S / 2}, workers=2)
        eventually(lambda: _ids(one_node) and not (_ids(one_node) & before), 120)
    finally:
        stop.set()
        client.join()
    assert failures == []
    ended = [_ended(one_node, job) for job in jobs]
    assert {job["state"] for job in ended} == {"succeeded"}
    assert {job["attempt"] for job in ended} == {1}
    print(f"{len(jobs)} jobs over a rolling update: none refused, none cut")


def _ids(client: httpx.Client) -> set[str]:
    return {worker["id"] for worker in (_get(client, "/v1/health") or {}).get("workers", [])}


def test_a_killed_workers_job_runs_again_within_the_lease_and_one_start_up(
    one_node: httpx.Client, deploy: Deploy
) -> None:
    """When the only worker is killed during a job, its successor runs the job."""
    began = time.monotonic()
    store = deploy(simulated={"step_s": STEP_S, "load_s": 2})
    eventually(lambda: _get(one_node, "/readyz") == {"ready": True, "reason": "1 worker can generate"})
    start_up_s = time.monotonic() - began
    lease_s = AppArgs().queue.lease_s
    job = _submit(one_node, steps=60)
    eventually(lambda: (store.jobs.get(job).progress or {}).get("step", 0) >= 3)
    (worker,) = store.workers.seen()
    os.kill(worker.process.pid, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: store.jobs.get(job).attempt == 2, 120)
    recovery_s = time.monotonic() - killed
    print(
        f"a killed worker's job ran again after {recovery_s:.1f} s; lease {lease_s:g} s, a start-up {start_up_s:.1f} s"
    )
    assert recovery_s <= lease_s + start_up_s
    assert _ended(one_node, job)["state"] == "succeeded"


def test_a_fleet_grows_from_zero_in_one_step_and_sleeps_again(one_node: httpx.Client, deploy: Deploy) -> None:
    """The fleet goes from zero to four workers in one step for forty jobs, and back to zero when idle."""
    bounds = {"min_workers": 0, "max_workers": 4, "target_wait_s": 2, "idle_s": 1, "work_prior": 1.0}
    store = deploy(simulated={"step_s": STEP_S}, scaling=bounds)
    eventually(lambda: (_get(one_node, "/readyz") or {}).get("ready"))
    assert _replicas() == 0
    burst = [_submit(one_node, steps=5) for _ in range(40)]
    wanted = eventually(lambda: scale if (scale := one_node.get("/v1/health").json()["scale"]["m"])["wanted"] else None)
    print(f"a burst of 40 at zero workers: {wanted['wanted']} wanted at once: {wanted['reason']}")
    assert wanted["wanted"] == 4
    assert {_ended(one_node, job)["state"] for job in burst} == {"succeeded"}
    assert len({store.jobs.get(job).worker for job in burst}) == 4
    eventually(lambda: not _replicas(), 60)
    assert one_node.get("/readyz").status_code == 200


def test_deleting_the_application_ends_the_running_job_first(one_node: httpx.Client, deploy: Deploy) -> None:
    """On `serve delete` the running job is published, and the waiting one stays in the queue."""
    store = deploy(simulated={"step_s": STEP_S})
    running = _submit(one_node, steps=100)  # 10 s: on a busy machine Serve takes seconds to tell the worker
    waiting = _submit(one_node)
    eventually(lambda: store.jobs.get(running).status == "running")
    serve.delete("sophia")
    assert (store.jobs.get(running).status, store.jobs.get(running).attempt) == ("succeeded", 1)
    assert store.jobs.get(waiting).status == "queued"


def test_a_model_that_cannot_be_loaded_stops_being_tried_and_says_why(
    one_node: httpx.Client, deploy: Deploy, tmp_path: Path
) -> None:
    """Loading stops at the breaker's limit, every view shows the cause, and a reset tries again."""
    missing = tmp_path / "no-such-checkpoint"
    store = deploy(wait=False, source=str(missing), device="cpu")
    job = _submit(one_node)
    told = eventually(
        lambda: (
            found
            if "not retrying" in (found := (_get(one_node, f"/v1/jobs/{job}") or {}).get("waiting_for") or "")
            else None
        ),
        60,
    )
    assert str(missing) in told
    breaker = one_node.get("/v1/health").json()["breakers"]["m"]
    assert (breaker["open"], breaker["load_runs"], breaker["error"]["code"]) == (True, 2, "missing_file")
    ready = one_node.get("/readyz")
    assert (ready.status_code, "cannot be loaded" in ready.json()["reason"]) == (503, True)
    assert one_node.get("/ping").status_code == 200
    eventually(lambda: not _replicas(), 60)
    scale = one_node.get("/v1/health").json()["scale"]["m"]
    assert (scale["wanted"], "breaker is open" in scale["reason"]) == (0, True)
    store.load_attempts.reset("m")
    eventually(lambda: (_get(one_node, "/v1/health") or {})["breakers"]["m"]["open"], 60)
    with store.database.read() as connection:
        assert len(connection.execute(loads.select()).all()) == 2
    eventually(lambda: not _replicas(), 60)


@pytest.mark.fault("A2")
def test_a_rollout_to_something_broken_leaves_the_good_worker_serving(
    one_node: httpx.Client, deploy: Deploy, tmp_path: Path
) -> None:
    """A broken build opens only its own breaker, and the old build keeps generating."""
    deploy(workers=2)
    eventually(lambda: (_get(one_node, "/v1/health") or {"scale": {"m": {"ready": 0}}})["scale"]["m"]["ready"] == 2, 60)
    deploy(wait=False, workers=2, source=str(tmp_path / "missing"), device="cpu")
    eventually(
        lambda: (_get(one_node, "/v1/health") or {"breakers": {"m": {"open": False}}})["breakers"]["m"]["open"], 240
    )

    ended = _ended(one_node, _submit(one_node))

    assert ended["state"] == "succeeded"


def _replicas() -> int:
    found = serve.status().applications["sophia"].deployments["MusicWorker-m"].replica_states
    return sum(found.values())

"""A burst of jobs without a running worker, beside Ray Serve's own scaling, and jobs of very different lengths on running workers.

Usage: python -m benchmarks.burst     (part of `make bench`)

Both parts run on a real one-node Ray cluster with the simulated engine.

1. 40 jobs of one second are submitted while no worker runs; up to four may start. The same is done with a plain Serve deployment
   that sleeps for a second per request, scaled by Serve's own policy with its defaults and the same bounds. The benchmark prints
   how many workers start in each step, when they are ready, and when all jobs are done.
2. 64 jobs of 0.5 to 4 s are submitted while four workers run. Their makespan is compared with that of greedy list scheduling of the
   same lengths in the same order, which leaves no worker idle while a job waits (Graham 1966).

Exits with 1 if the makespan is more than BOUND times that of list scheduling, or if the first step starts fewer than four workers.
"""

import argparse
import asyncio
import heapq
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import ray
from ray import serve

from serve_app.app import build
from serve_app.config import AppArgs
from serve_app.store import Store
from tests.support.helpers import eventually, free_port

BOUND: Final = 1.05
WORKERS: Final = 4
BURST: Final = 40
JOB_S: Final = 1.0
STEP_S: Final = 0.1
SEED: Final = 4
LENGTHS: Final = 64


class Sleeper:
    """The plain Serve deployment for comparison: each request is a job."""

    async def __call__(self, request: Any) -> str:
        await asyncio.sleep(JOB_S)
        return "done"


@contextmanager
def cluster() -> Iterator[httpx.Client]:
    """An empty Serve on one node, and a client for it."""
    port = free_port()
    ray.init("local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(folder: Path, least: int) -> Store:
    """Deploy Sophia with one simulated model and `least` to WORKERS workers."""
    scaling = {"min_workers": least, "max_workers": WORKERS, "target_wait_s": 1, "work_prior": 1.0}
    model = {"source": "simulated", "simulated": {"step_s": STEP_S}, "num_cpus": 0.1, "scaling": scaling}
    args = AppArgs.model_validate({"data_dir": folder, "models": {"m": model}})
    serve.run(build(args), name="sophia", route_prefix="/")
    return Store(args.resolved_database_url)


# --- A burst without a running worker -------------------------------------------------------------------------------------


class Growth:
    """Records how many replicas a deployment has, from its construction until `stop`."""

    def __init__(self, application: str, deployment: str) -> None:
        self._application = application
        self._deployment = deployment
        self.began = time.monotonic()
        self.steps: list[tuple[float, int]] = []
        """(seconds, replicas that run or start) at each change."""
        self.up_s: dict[int, float] = {}
        """For each number of replicas, the seconds until that many ran for the first time."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            states = serve.status().applications[self._application].deployments[self._deployment].replica_states
            seconds = time.monotonic() - self.began
            running = states.get("RUNNING", 0)
            there = running + states.get("STARTING", 0)
            if there > (self.steps[-1][1] if self.steps else 0):
                self.steps.append((seconds, there))
            for count in range(1, running + 1):
                self.up_s.setdefault(count, seconds)

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return time.monotonic() - self.began

    def summary(self, name: str, done_s: float) -> str:
        steps = ", ".join(f"{count} after {seconds:.1f} s" for seconds, count in self.steps)
        up = ", ".join(f"{count} after {seconds:.1f} s" for count, seconds in sorted(self.up_s.items()))
        return f"{name}: replicas started: {steps}; ready: {up}; all {BURST} jobs done after {done_s:.1f} s"


def sophias_burst(client: httpx.Client, folder: Path) -> Growth:
    store = deploy(folder, 0)
    growth = Growth("sophia", "MusicWorker-m")
    body = {"prompt": "x", "duration": 1, "format": "wav", "steps": round(JOB_S / STEP_S)}
    for _ in range(BURST):
        assert client.post("/v1/jobs", json=body).status_code == 202
    eventually(lambda: store.backlog.counts()["succeeded"] == BURST, 180)
    print(growth.summary("Sophia", growth.stop()), flush=True)
    store.close()
    serve.delete("sophia")
    return growth


def serves_burst(client: httpx.Client) -> Growth:
    bounds = {"min_replicas": 0, "max_replicas": WORKERS, "target_ongoing_requests": 1}
    options: dict[str, Any] = {
        "autoscaling_config": bounds,
        "max_ongoing_requests": 1,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    serve.run(serve.deployment(Sleeper).options(**options).bind(), name="bare", route_prefix="/")
    growth = Growth("bare", "Sleeper")
    threads = [
        threading.Thread(target=httpx.get, args=(f"{client.base_url}/",), kwargs={"timeout": 300}) for _ in range(BURST)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(growth.summary("Serve's default policy", growth.stop()), flush=True)
    serve.delete("bare")
    return growth


# --- Jobs of different lengths on running workers -------------------------------------------------------------------------


def greedy_s(lengths: list[float]) -> float:
    """The makespan of list scheduling: each job in turn goes to the worker that is free first."""
    free = [0.0] * WORKERS
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


def makespan(client: httpx.Client, folder: Path) -> float:
    """The time from the first start to the last end, divided by the makespan of list scheduling."""
    store = deploy(folder, WORKERS)
    eventually(lambda: client.get("/v1/health").json()["scale"]["m"]["ready"] == WORKERS, 60)
    random_ = random.Random(SEED)
    steps = [random_.randint(5, 40) for _ in range(LENGTHS)]
    jobs = []
    for count in steps:
        answer = client.post("/v1/jobs", json={"prompt": "x", "duration": 1, "format": "wav", "steps": count})
        jobs.append(str(answer.json()["id"]))
    eventually(lambda: store.backlog.counts()["succeeded"] == LENGTHS, 300)
    ended = [store.jobs.get(job) for job in jobs]
    seconds = max(job.finished_at or 0.0 for job in ended) - min(job.started_at or 0.0 for job in ended)
    bound = greedy_s([count * STEP_S for count in steps])
    shortest = min(steps) * STEP_S
    longest = max(steps) * STEP_S
    print(f"{LENGTHS} jobs of {shortest:.1f} to {longest:.1f} s on {WORKERS} workers: {seconds:.2f} s")
    print(
        f"greedy list scheduling of the same jobs: {bound:.2f} s; Sophia takes {seconds / bound:.3f} times as long",
        flush=True,
    )
    store.close()
    serve.delete("sophia")
    return seconds / bound


def main() -> int:
    """Run all parts. Returns 0 if both bounds hold."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster() as client:
        grown = sophias_burst(client, Path(folder) / "burst")
        serves_burst(client)
        ratio = makespan(client, Path(folder) / "lengths")
    return 0 if ratio <= BOUND and grown.steps[0][1] == WORKERS else 1


if __name__ == "__main__":
    sys.exit(main())

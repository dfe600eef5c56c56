"""Break everything while songs are made, and count what was lost. `make chaos` runs the long form on both databases.

A real Ray cluster, and Sophia's own client, which goes on as its users' programs would. While jobs are submitted, workers, API
processes, Serve's controller and proxy, and the database server are killed with SIGKILL, at random from a printed seed; a bad host
comes, the disk fills, the whole machine stands still, and workers are ended while they load (`tests/support/chaos_events.py`). Then
all is asserted from outside.

Usage: python -m tests.support.chaos [--jobs 200] [--events 40] [--seed N]
    [--engine simulated|embedded] [--database sqlite|postgresql]
"""

import argparse
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from sophia_client import Client, Retries
from sophia_client.answers import Job
from tests.support.chaos_events import LEASE_S, LOADING_MODEL, Events, disk
from tests.support.databases import private_postgresql
from tests.support.helpers import eventually

# Read by Serve's processes: a dead proxy is noticed after 3 checks of 1 s instead of 10 s.
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "1")

SECONDS = 1.0  # of each song


@dataclass
class Plan:
    """What to break, and how often."""

    jobs: int = 200
    events: int = 40
    seed: int = 0
    engine: str = "simulated"
    database: str = "sqlite"
    workers: int = 3
    pause_s: tuple[float, float] = (0.3, 2.0)
    plan_s: float = 0.5
    """Seconds that the simulated planner takes for a song. Every other job is planned before it is rendered."""


@dataclass
class Outcome:
    """What the run lost, duplicated and measured."""

    accepted: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    lost_attempts: list[str] = field(default_factory=list)
    """Jobs that a pause of the whole machine took from a worker that lived."""
    opened: list[str] = field(default_factory=list)
    """Breakers that are open, and loads that were booked as failures though they were ended on purpose."""
    attempts: int = 0
    unplanned: list[str] = field(default_factory=list)
    """Jobs that asked for a plan and have not exactly the one that their seed gives."""
    planned: int = 0
    plan_attempts: int = 0

    def __str__(self) -> str:
        longest = f"{max(self.recoveries_s):.1f} s" if self.recoveries_s else "none was running a job"
        return (
            f"jobs {len(self.accepted)} ({dict(self.states)}), attempts {self.attempts}, plans {self.planned}, "
            f"attempts at plans {self.plan_attempts}, wrong plans {len(self.unplanned)}; events {dict(self.events)}; "
            f"lost {len(self.lost)}, duplicates {len(self.duplicates)}, broken files {len(self.broken)}, files without a job "
            f"{len(self.orphans)}, attempts lost by a pause {len(self.lost_attempts)}, breakers opened {len(self.opened)}; "
            f"longest recovery of a killed worker's job: {longest}"
        )


def run(plan: Plan, folder: Path, weights: Path | None = None) -> Outcome:
    """Runs one plan on its own cluster. Raises AssertionError when something was lost."""
    print(f"chaos: {plan}", flush=True)
    outcome = Outcome()
    with ExitStack() as stack:
        stack.enter_context(disk(folder / "audio"))
        server = stack.enter_context(private_postgresql() if plan.database == "postgresql" else nullcontext())
        url = server.get_uri() if server else None
        client = stack.enter_context(_sophia(plan, folder, url, weights))
        store = _store(folder, url)
        stack.callback(store.close)
        submitter = threading.Thread(target=_submit_all, args=(plan, client, outcome))
        submitter.start()
        events = Events(random.Random(plan.seed), folder, client, store, server)
        events.happen(plan.events, plan.pause_s)
        submitter.join()
        _settle(client, outcome)
        _examine(client, folder, store, outcome, events)
    print(f"chaos: {outcome}", flush=True)
    assert len(outcome.accepted) == plan.jobs
    assert outcome.states == {"succeeded": plan.jobs}, outcome.states
    assert [outcome.lost, outcome.duplicates, outcome.broken, outcome.orphans] == [[], [], [], []]
    assert [outcome.lost_attempts, outcome.opened, outcome.unplanned] == [[], [], []]
    assert outcome.planned == plan.jobs // 2
    return outcome


# --- The service ------------------------------------------------------------------------------------------------------


@contextmanager
def _sophia(plan: Plan, folder: Path, database_url: str | None, weights: Path | None) -> Iterator[Client]:
    import ray
    from ray import serve

    from serve_app.app import build
    from serve_app.config import AppArgs
    from tests.support.helpers import free_port

    if weights is not None:
        (folder / "weights").symlink_to(weights)
    model: dict[str, Any] = {"source": plan.engine, "device": "cpu", "num_cpus": 0.1}
    loading = model | {"source": "simulated", "simulated": {"load_s": 60}}
    loading["scaling"] = {"min_workers": 0, "max_workers": 1, "idle_s": 1, "target_wait_s": 1}
    model["scaling"] = {"min_workers": plan.workers, "max_workers": plan.workers}
    settings: dict[str, Any] = {
        "data_dir": folder,
        "models": {
            "m": model | {"simulated": {"step_s": 0.05, "plan_s": plan.plan_s}, "planner": {"source": "simulated"}},
            LOADING_MODEL: loading,
        },
        "api": {"replicas": 2},
        # attempts are plenty: with a kill each second, three unlucky ones in a row prove nothing
        "queue": {"lease_s": LEASE_S, "max_attempts": 50},
    }
    port = free_port()
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=bool(os.environ.get("SOPHIA_TEST_LOGS")))
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        args = AppArgs.model_validate(settings | ({"database_url": database_url} if database_url else {}))
        serve.run(build(args), name="sophia", route_prefix="/")
        with Client(f"http://127.0.0.1:{port}", timeout_s=15, retries=Retries(for_s=120)) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def _store(folder: Path, url: str | None) -> Any:
    from serve_app.store import Store

    return Store(url or f"sqlite:///{folder / 'sophia.db'}")


def _submit_all(plan: Plan, client: Client, outcome: Outcome) -> None:
    for seed in range(plan.jobs):
        job = client.submit(
            "x",
            duration=SECONDS,
            seed=seed,
            steps=1 if plan.engine == "embedded" else 8,
            format="flac",
            thinking="codes" if _is_planned(seed) else "none",
        )
        outcome.accepted.append(job.id)


def _is_planned(seed: int) -> bool:
    return seed % 2 == 1


# --- The examination --------------------------------------------------------------------------------------------------


def _settle(client: Client, outcome: Outcome) -> None:
    for job in outcome.accepted:
        for _ in client.follow(job, timeout_s=300):
            pass


def _examine(client: Client, folder: Path, store: Any, outcome: Outcome, events: Events) -> None:
    outcome.events = events.counts
    outcome.recoveries_s = events.recoveries_s
    outcome.lost_attempts = events.lost_attempts
    outcome.opened = _opened(client, store)
    listed = Counter(job.id for job in client.jobs())
    known = {*outcome.accepted, *events.cancelled}
    outcome.duplicates += [job for job, count in listed.items() if count > 1 or job not in known]
    outcome.lost += [job for job in outcome.accepted if job not in listed]
    for job_id in outcome.accepted:
        job = client.job(job_id)
        outcome.states[job.state] += 1
        outcome.attempts += job.attempt
        if job.state == "succeeded" and not _is_playable(client, job, folder):
            outcome.broken.append(job_id)
        if _is_planned(job.request["seed"]):
            _examine_plan(client, store, job, outcome)
    outcome.orphans += _files_without_a_job(folder, store)


def _examine_plan(client: Client, store: Any, job: Job, outcome: Outcome) -> None:
    seed = job.request["seed"]
    expected = [seed + 7 * number for number in range(round(SECONDS * 5))]  # those of SimulatedPlanner
    if client.plan_of(job).codes != [expected]:
        outcome.unplanned.append(job.id)
    outcome.planned += 1
    outcome.plan_attempts += store.plans.of_job(job.id).attempt


def _opened(client: Client, store: Any) -> list[str]:
    from serve_app.store.tables import loads

    def booked() -> list[Any]:
        with store.database.read() as connection:
            return list(connection.execute(loads.select().where(loads.c.model == LOADING_MODEL)))

    eventually(lambda: all(row.ended_at is not None for row in booked()), 120)
    breakers = client.health().breakers
    return [name for name, breaker in breakers.items() if breaker.open] + [row.code for row in booked() if row.code]


def _is_playable(client: Client, job: Job, folder: Path) -> bool:
    if len(job.audio) != 1:
        return False
    samples, rate = soundfile.read(client.download(job, folder / "downloaded.flac"))
    return bool(rate == 48_000 and len(samples) == SECONDS * rate and abs(samples).max() > 0)


def _files_without_a_job(folder: Path, store: Any) -> list[str]:
    """Files that belong to no job after the janitor has run."""
    from serve_app.artifacts import Artifacts
    from serve_app.background.janitor import sweep_files

    artifacts = Artifacts((folder / "audio").as_uri())
    sweep_files(store, artifacts, grace_s=0)
    named = {key for job in _every_row(store) for file in job.audio for key in file.keys}
    return [file.key for file in artifacts.list() if file.key not in named]


def _every_row(store: Any) -> Iterator[Any]:
    before = None
    while page := store.jobs.page(before=before, limit=200):
        yield from page
        before = page[-1].id


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--engine", choices=["simulated", "embedded"], default="simulated")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sophia-chaos-") as folder:
        run(Plan(**vars(given)), Path(folder))
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main()

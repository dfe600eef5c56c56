"""Break everything while songs are made, and count what was lost. `make chaos` runs the long form on both databases.

A real Ray cluster, a real HTTP client. Workers, API processes, Serve's controller and proxy, and the database server are killed
with SIGKILL at random from a printed seed, by their own pids, while jobs are submitted. Then all is asserted from outside.

Usage: python -m tests.chaos [--jobs 200] [--kills 40] [--seed N] [--engine simulated|embedded] [--database sqlite|postgresql]
"""

import argparse
import io
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import soundfile

from tests.databases import private_postgresql
from tests.helpers import eventually

# Read by Serve's processes: a dead proxy is noticed after 3 checks of 1 s instead of 10 s.
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "1")

SECONDS = 1.0  # of each song
LEASE_S = 5
KINDS = {
    "worker": "ray::ServeReplica:sophia:MusicWorker",
    "api": "ray::ServeReplica:sophia:Api",
    "controller": "ray::ServeController",
    "proxy": "ray::ProxyActor",
}


@dataclass
class Plan:
    """How much to break."""

    jobs: int = 200
    kills: int = 40
    seed: int = 0
    engine: str = "simulated"
    database: str = "sqlite"
    workers: int = 3
    pause_s: tuple[float, float] = (0.3, 2.0)


@dataclass
class Outcome:
    """What came of it."""

    accepted: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    attempts: int = 0

    def __str__(self) -> str:
        longest = f"{max(self.recoveries_s):.1f} s" if self.recoveries_s else "none was running a job"
        return (
            f"jobs {len(self.accepted)} ({dict(self.states)}), attempts {self.attempts}; kills {dict(self.kills)}; "
            f"lost {len(self.lost)}, duplicates {len(self.duplicates)}, broken files {len(self.broken)}, files without a job "
            f"{len(self.orphans)}; longest recovery of a killed worker's job: {longest}"
        )


def run(plan: Plan, folder: Path, weights: Path | None = None) -> Outcome:
    """Run one plan on a cluster of its own; raises AssertionError when something was lost."""
    print(f"chaos: {plan}", flush=True)
    outcome = Outcome()
    with ExitStack() as stack:
        server = stack.enter_context(private_postgresql() if plan.database == "postgresql" else nullcontext())
        url = server.get_uri() if server else None
        client = stack.enter_context(_sophia(plan, folder, url, weights))
        store = _store(folder, url)
        stack.callback(store.close)
        submitter = threading.Thread(target=_submit_all, args=(plan, client, outcome))
        submitter.start()
        _break_things(plan, server, store, outcome, submitter)
        submitter.join()
        _settle(client, outcome)
        _examine(client, folder, store, outcome)
    print(f"chaos: {outcome}", flush=True)
    assert len(outcome.accepted) == plan.jobs
    assert outcome.states == {"succeeded": plan.jobs}, outcome.states
    assert [outcome.lost, outcome.duplicates, outcome.broken, outcome.orphans] == [[], [], [], []]
    return outcome


# --- The service ------------------------------------------------------------------------------------------------------


@contextmanager
def _sophia(plan: Plan, folder: Path, database_url: str | None, weights: Path | None) -> Iterator[httpx.Client]:
    import ray
    from ray import serve

    from serve_app.app import build
    from serve_app.config import AppArgs
    from tests.test_serve import _free_port

    if weights is not None:
        (folder / "weights").symlink_to(weights)
    model: dict[str, Any] = {"source": plan.engine, "device": "cpu", "num_cpus": 0.1}
    model["scaling"] = {"min_workers": plan.workers, "max_workers": plan.workers}
    settings: dict[str, Any] = {
        "data_dir": folder,
        "models": {"m": model | {"simulated": {"step_s": 0.05}}},
        "api": {"replicas": 2},
        # attempts are plenty: with a kill each second, three unlucky ones in a row prove nothing
        "queue": {"lease_s": LEASE_S, "max_attempts": 50},
    }
    port = _free_port()
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=bool(os.environ.get("SOPHIA_TEST_LOGS")))
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        args = AppArgs.model_validate(settings | ({"database_url": database_url} if database_url else {}))
        serve.run(build(args), name="sophia", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=15) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def _store(folder: Path, url: str | None) -> Any:
    from serve_app.store import Store

    return Store(url or f"sqlite:///{folder / 'sophia.db'}")


def _submit_all(plan: Plan, client: httpx.Client, outcome: Outcome) -> None:
    """Each job until it is accepted, with one Idempotency-Key for all its tries, as a careful client does."""
    for seed in range(plan.jobs):
        body = {
            "prompt": "x",
            "duration": SECONDS,
            "seed": seed,
            "steps": 1 if plan.engine == "embedded" else 8,
            "format": "flac",
        }
        answer = _until_answered(lambda body=body, key=str(uuid.uuid4()): _post(client, body, key), (200, 202))  # type: ignore[misc]
        outcome.accepted.append(answer.json()["id"])


def _post(client: httpx.Client, body: dict[str, Any], key: str) -> httpx.Response:
    return client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})


def _until_answered(
    ask: Callable[[], httpx.Response], statuses: tuple[int, ...], seconds: float = 120
) -> httpx.Response:
    def tried() -> httpx.Response | None:
        try:
            answer = ask()
        except httpx.TransportError:
            return None
        # A proxy that has just started knows no routes yet and says 404 itself; Sophia's own answers are never text/plain.
        ours = not answer.headers.get("content-type", "").startswith("text/plain")
        assert answer.status_code >= 500 or answer.status_code in statuses or not ours, answer.text
        return answer if answer.status_code in statuses else None

    return eventually(tried, seconds, every=0.1)


# --- The breaking -----------------------------------------------------------------------------------------------------


def _break_things(plan: Plan, server: Any, store: Any, outcome: Outcome, submitter: threading.Thread) -> None:
    dice = random.Random(plan.seed)
    watchers: list[threading.Thread] = []
    # Each kind at least once, workers most often.
    kinds = [*KINDS, "database"] if server else [*KINDS]
    order = kinds + dice.choices(["worker", *kinds], k=max(plan.kills - len(kinds), 0))
    dice.shuffle(order)
    for kind in order:
        time.sleep(dice.uniform(*plan.pause_s))
        if kind == "database":
            _kill_database(server)
        else:
            victim = eventually(lambda kind=kind: _victim(kind, dice), 60)  # type: ignore[misc]
            if kind == "worker":
                watchers += _watch_recovery(store, victim.pid, outcome)
            victim.send_signal(signal.SIGKILL)
        outcome.kills[kind] += 1
        print(f"chaos: killed {kind}", flush=True)
    for watcher in watchers:
        watcher.join()


def _victim(kind: str, dice: random.Random) -> psutil.Process | None:
    ours = psutil.Process().children(recursive=True)
    found = sorted((process for process in ours if _title(process).startswith(KINDS[kind])), key=lambda p: p.pid)
    return dice.choice(found) if found else None


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill_database(server: Any) -> None:
    """SIGKILL for the postmaster, which takes its backends with it; then a new one on the same files."""
    postmaster = psutil.Process(server.get_pid())
    postmaster.send_signal(signal.SIGKILL)
    postmaster.wait(30)
    time.sleep(0.5)
    server.start()


def _watch_recovery(store: Any, pid: int, outcome: Outcome) -> list[threading.Thread]:
    """Measures how long the jobs of the worker with this pid take to run again."""
    from serve_app.errors import StoreUnavailable

    try:
        workers = {row.id for row in store.workers.seen() if row.process.pid == pid}
        held = [job for job in store.jobs.page(states=["running"], limit=20) if job.worker in workers]
    except StoreUnavailable:
        return []
    killed = time.monotonic()

    def watch(job: str, attempt: int) -> None:
        def moved() -> bool:
            try:
                found = store.jobs.get(job)
            except StoreUnavailable:
                return False
            return bool(found.attempt > attempt or found.status.final)

        eventually(moved, 120)
        outcome.recoveries_s.append(time.monotonic() - killed)

    threads = [threading.Thread(target=watch, args=(job.id, job.attempt)) for job in held]
    for thread in threads:
        thread.start()
    return threads


# --- The examination --------------------------------------------------------------------------------------------------


def _settle(client: httpx.Client, outcome: Outcome) -> None:
    for job in outcome.accepted:
        path = f"/v1/jobs/{job}"
        eventually(
            lambda path=path: (
                _until_answered(lambda: client.get(path), (200,)).json()["state"] not in ("queued", "running")
            ),
            300,
        )  # type: ignore[misc]


def _examine(client: httpx.Client, folder: Path, store: Any, outcome: Outcome) -> None:
    listed = Counter(job["id"] for job in _all_jobs(client))
    outcome.duplicates += [job for job, count in listed.items() if count > 1 or job not in outcome.accepted]
    outcome.lost += [job for job in outcome.accepted if job not in listed]
    for job_id in outcome.accepted:
        job = _until_answered(lambda job_id=job_id: client.get(f"/v1/jobs/{job_id}"), (200,)).json()  # type: ignore[misc]
        outcome.states[job["state"]] += 1
        outcome.attempts += job["attempt"]
        if job["state"] == "succeeded" and not _is_playable(client, job):
            outcome.broken.append(job_id)
    outcome.orphans += _files_without_a_job(folder, store)


def _all_jobs(client: httpx.Client) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        page = _until_answered(lambda cursor=cursor: client.get(f"/v1/jobs?limit=100{cursor}"), (200,)).json()  # type: ignore[misc]
        yield from page["jobs"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"


def _is_playable(client: httpx.Client, job: dict[str, Any]) -> bool:
    if len(job["audio"]) != 1:
        return False
    body = _until_answered(lambda: client.get(job["audio"][0]["url"]), (200,)).content
    samples, rate = soundfile.read(io.BytesIO(body))
    return bool(rate == 48_000 and len(samples) == SECONDS * rate and abs(samples).max() > 0)


def _files_without_a_job(folder: Path, store: Any) -> list[str]:
    """Files that no job names, after the janitor has been."""
    from serve_app.artifacts import Artifacts
    from serve_app.janitor import sweep_files

    artifacts = Artifacts((folder / "audio").as_uri())
    sweep_files(store, artifacts, grace_s=0)
    named = {file["key"] for job in _every_row(store) for file in job.audio}
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
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--engine", choices=["simulated", "embedded"], default="simulated")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sophia-chaos-") as folder:
        run(Plan(**vars(given)), Path(folder))
    print("1 passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())

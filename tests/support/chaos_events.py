"""The events that chaos causes: kills, a bad host, a full disk, a pause of the whole machine, an end during a load."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from sophia_client import Client, Conflict
from tests.support.disks import fill
from tests.support.helpers import eventually

T = TypeVar("T")

LEASE_S = 5
LOADING_MODEL = "loads-long"
PROCESSES = {
    "worker": "ray::ServeReplica:sophia:MusicWorker-m",
    "api": "ray::ServeReplica:sophia:Api",
    "controller": "ray::ServeController",
    "proxy": "ray::ProxyActor",
}
DISK_MB = 256


class Events:
    """The kinds of events by name, and their results."""

    def __init__(self, dice: random.Random, folder: Path, client: Client, store: Any, server: Any) -> None:
        """`store` reads the service's database; `server` is its PostgreSQL server, or None."""
        self._dice = dice
        self._folder = folder
        self._client = client
        self._store = store
        self._server = server
        self._watchers: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()
        self.recoveries_s: list[float] = []
        self.lost_attempts: list[str] = []
        """Running jobs that a pause of the whole machine took from a worker that lived."""
        self.cancelled: list[str] = []
        self.kinds: dict[str, Callable[[], None]] = {
            **{kind: lambda kind=kind: self._kill(kind) for kind in PROCESSES},  # type: ignore[misc]
            "bad_host": self._bad_host,
            "pause": self._pause,
            "end_while_loading": self._end_while_loading,
        }
        if os.path.ismount(folder / "audio"):
            self.kinds["full_disk"] = self._full_disk
        if server is not None:
            self.kinds["database"] = self._kill_database

    def happen(self, count: int, pause_s: tuple[float, float]) -> None:
        """Causes `count` events, each kind at least once and workers most often, with a random pause before each."""
        order = [*self.kinds, *self._dice.choices(["worker", *self.kinds], k=max(count - len(self.kinds), 0))]
        self._dice.shuffle(order)
        for kind in order:
            time.sleep(self._dice.uniform(*pause_s))
            self.kinds[kind]()
            self.counts[kind] += 1
            print(f"chaos: {kind}", flush=True)
        for watcher in self._watchers:
            watcher.join()

    # --- Kills --------------------------------------------------------------------------------------------------------

    def _kill(self, kind: str) -> None:
        victim = eventually(lambda: self._victim(kind), 60)
        if kind == "worker":
            self._watch_recovery(victim.pid)
        victim.send_signal(signal.SIGKILL)

    def _victim(self, kind: str) -> psutil.Process | None:
        ours = psutil.Process().children(recursive=True)
        found = sorted(
            (process for process in ours if _title(process).startswith(PROCESSES[kind])), key=lambda p: p.pid
        )
        return self._dice.choice(found) if found else None

    def _kill_database(self) -> None:
        """Kills PostgreSQL's postmaster and its backends with SIGKILL, then starts a new one on the same files."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.send_signal(signal.SIGKILL)
        postmaster.wait(30)
        time.sleep(0.5)
        self._server.start()

    def _watch_recovery(self, pid: int) -> None:
        """Measures how long the jobs of the worker with this pid take to run again."""
        workers = {row.id for row in self._seen() if row.process.pid == pid}
        held = [job for job in self._running() if job.worker in workers]
        killed = time.monotonic()

        def watch(job: Any) -> None:
            eventually(lambda: self._moved(job), 120)
            self.recoveries_s.append(time.monotonic() - killed)

        for job in held:
            self._watchers.append(threading.Thread(target=watch, args=(job,)))
            self._watchers[-1].start()

    # --- What is not a kill -------------------------------------------------------------------------------------------

    def _bad_host(self) -> None:
        """Adds a worker whose device fails with its first song; the worker returns the job and ends."""
        from serve_app.artifacts import Artifacts
        from serve_app.config import QueueArgs
        from serve_app.worker.worker import Worker
        from tests.support.engines import BrokenDevice
        from tests.support.running import simulated

        engine = BrokenDevice("m", simulated(), RuntimeError("CUDA error: an illegal memory access was encountered"))
        artifacts = Artifacts((self._folder / "audio").as_uri())
        worker = Worker("m", engine, self._store, artifacts, QueueArgs(lease_s=LEASE_S))
        worker.start()
        deadline = time.monotonic() + 10  # perhaps there is no job left for it to spoil
        while worker.alive and time.monotonic() < deadline:
            time.sleep(0.05)
        worker.drain()

    def _full_disk(self) -> None:
        filler = fill(self._folder / "audio")
        time.sleep(2)
        filler.unlink()

    def _pause(self) -> None:
        """Stops all processes for longer than a lease, like a machine that sleeps. No living worker may lose its job."""
        alive = {row.id for row in self._seen() if not row.process.is_dead}
        held = [job for job in self._running() if job.worker in alive]
        frozen: list[psutil.Process] = []
        try:
            while moving := [process for process in self._whole_machine() if process not in frozen]:
                frozen += moving
                for process in moving:
                    _signal(process, signal.SIGSTOP)
            time.sleep(LEASE_S * 1.5)
        finally:
            for process in frozen:
                _signal(process, signal.SIGCONT)
        for job in held:
            eventually(partial(self._moved, job), 120)
        self.lost_attempts += [job.id for job in held if self._attempt(job) > job.attempt]

    def _whole_machine(self) -> list[psutil.Process]:
        machine: list[psutil.Process] = psutil.Process().children(recursive=True)
        if self._server is not None:
            postmaster = psutil.Process(self._server.get_pid())
            machine += [process for process in [postmaster, *postmaster.children()] if process not in machine]
        return machine

    def _end_while_loading(self) -> None:
        """Cancels a job during the minute-long load of the model that it started, so that Serve ends the worker."""
        job = self._client.submit("x", model=LOADING_MODEL, duration=1).id
        self.cancelled.append(job)
        eventually(self._is_loading, 120, every=0.1)
        with suppress(Conflict):  # it has ended
            self._client.cancel(job)

    def _is_loading(self) -> bool:
        return any(
            row.model == LOADING_MODEL and row.phase == "load" and not row.process.is_dead for row in self._seen()
        )

    # --- The database, which may be unreachable -----------------------------------------------------------------------

    def _seen(self) -> list[Any]:
        return _heard(self._store.workers.seen, [])

    def _running(self) -> list[Any]:
        return _heard(lambda: list(self._store.jobs.page(states=["running"], limit=20)), [])

    def _attempt(self, job: Any) -> int:
        return _heard(lambda: int(self._store.jobs.get(job.id).attempt), 0) or self._attempt(job)

    def _moved(self, job: Any) -> bool:
        def moved() -> bool:
            found = self._store.jobs.get(job.id)
            return bool(found.attempt > job.attempt or found.status.final)

        return _heard(moved, False)


def _heard(ask: Callable[[], T], otherwise: T) -> T:
    from serve_app.errors import StoreUnavailable

    try:
        return ask()
    except StoreUnavailable:
        return otherwise


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """A small disk for the audio, if mounting is allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        print(f"chaos: no disk is filled, as none can be mounted here: {mounted.stderr.strip()}", flush=True)
    try:
        yield
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

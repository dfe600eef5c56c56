"""How much CPU time a thousand event streams of one running job cost the API, between two changes of the job and per change.

Usage: python -m benchmarks.followers [--followers 1000] [--seconds 10]     (part of `make bench`)

The followers run in a second process. A third process writes to the same database all the time, as workers do. Exits with 1 if the
API uses more than BOUND cores between two changes, in addition to what it uses without followers.
"""

import argparse
import asyncio
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from serve_app.jobs import Job
from serve_app.music import MusicRequest
from serve_app.store import Beat, Store
from tests.support.helpers import eventually
from tests.support.running import running

BOUND: Final = 0.1
"""In cores."""

WRITES_PER_S: Final = 20
"""As many writes as ten busy workers make."""
CHANGES_PER_S: Final = 2
LEASE_S: Final = 3600.0
LYRICS: Final = "la la la\n" * 500


# --- Other processes ------------------------------------------------------------------------------------------------------


def write(database: str, job: Job, over: Event) -> None:
    """Write the progress of a job that nobody follows, until `over` is set."""
    store = Store(database)
    while not over.wait(1 / WRITES_PER_S):
        beat(store, job)
    store.close()


def follow(url: str, job: str, count: int, connected: Any, received: Any) -> None:
    """Open `count` event streams of one job, and count the connected streams and the received events."""
    asyncio.run(_follow(url, job, count, connected, received))


async def _follow(url: str, job: str, count: int, connected: Any, received: Any) -> None:
    address = urlsplit(url)

    async def one() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        first = True
        while line := await reader.readline():
            if line.startswith(b"id:"):
                connected.value += first
                received.value += 1
                first = False

    await asyncio.gather(*(one() for _ in range(count)))


# --- Measuring ------------------------------------------------------------------------------------------------------------


def beat(store: Store, job: Job) -> None:
    progress = {"stage": "denoising", "step": 1, "steps": 8, "fraction": time.time() % 1}
    assert not store.claims.heartbeat([Beat(job.id, job.attempt, str(job.worker), progress)], LEASE_S)


def claimed(store: Store, lyrics: str) -> Job:
    request = MusicRequest(prompt="benchmark", lyrics=lyrics, model="ace-step", seed=1)
    store.jobs.submit(request, owner="", deadline_s=LEASE_S, max_attempts=3)
    job = store.claims.take("somebody", "ace-step", LEASE_S)
    assert job is not None
    return job


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cores(seconds: float) -> float:
    """The cores that this process uses while it only serves, measured over `seconds`."""
    before = cpu_s()
    began = time.monotonic()
    time.sleep(seconds)
    return (cpu_s() - before) / (time.monotonic() - began)


@contextmanager
def other(target: Any, *args: Any) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def main() -> int:
    """Measure and print. Returns 0 if the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--followers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    connected = spawn.Value("i", 0, lock=False)
    received = spawn.Value("i", 0, lock=False)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), workers=0) as service:
        database = service.args.resolved_database_url
        followed = claimed(service.store, LYRICS)
        noise = claimed(service.store, "")
        with other(write, database, noise, spawn.Event()):
            time.sleep(3)
            alone = cores(options.seconds)
            with other(follow, service.url, followed.id, options.followers, connected, received):
                eventually(lambda: connected.value == options.followers, 120)
                time.sleep(2)
                idle = cores(options.seconds)
                events = received.value
                before = cpu_s()
                changes = round(options.seconds * CHANGES_PER_S)
                for _ in range(changes):
                    beat(service.store, followed)
                    time.sleep(1 / CHANGES_PER_S)
                spent = cpu_s() - before - alone * options.seconds
                events = received.value - events
    print(f"the API without followers, with {WRITES_PER_S} writes per second by others: {alone:.3f} cores")
    print(f"with {options.followers} followers of one running job that does not change: {idle:.3f} cores")
    print(
        f"each change of the job: {spent / changes * 1000:.0f} ms of CPU time; {changes} changes gave {events} events"
    )
    print(f"between two changes: {idle - alone:.3f} cores more than without followers; the bound is {BOUND}")
    return 0 if idle - alone <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())

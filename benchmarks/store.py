"""The job store's throughput with many claimers, and the time of a claim beside a million finished jobs, on both databases.

Usage: python -m benchmarks.store [--claimers 64] [--seconds 8] [--finished 1000000]     (part of `make bench`)

Every claimer is a thread with its own Store, like a worker; eight threads share a process. Exits with 1 if a claim takes more than
BOUND times as long beside the finished jobs as without them.
"""

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import sqlalchemy as sa

from serve_app.config import BreakerArgs, ScalingArgs
from serve_app.jobs import Job, StoredAudio
from serve_app.music import MusicRequest
from serve_app.scaling.observation import StoreFleet
from serve_app.store import Beat, Store
from serve_app.store.tables import jobs
from tests.support.databases import empty_database, postgresql

BOUND: Final = 1.2
"""A claim beside the finished jobs may take this many times as long as without them."""

THREADS: Final = 8
ROUNDS: Final = 400
LEASE_S: Final = 60.0
TIMING: Final = {"queued_s": 0.0, "generate_s": 1.0, "encode_s": 0.1, "gpu_s": 1.0}

JOB_S: Final = 10.0
BEATS: Final = 2.0 + 3 * 4 / 15
"""Writes of a worker per second: progress twice, and its row, its leases and its device time four times per lease of 15 s. Each
counts as a heartbeat. With these and a job every JOB_S, the number of GPUs that the database can serve is calculated."""


# --- What a claimer does --------------------------------------------------------------------------------------------------


def submit(store: Store, owner: str) -> Job:
    request = MusicRequest(prompt="benchmark", model="m", seed=1, duration=30)
    return store.jobs.submit(request, owner=owner, deadline_s=3600, max_attempts=3)[0]


AUDIO: Final = StoredAudio(
    key="k", format="flac", seconds=30.0, sample_rate=48_000, channels=2, bytes=4, sha256="0", seed=1
)


def finish(store: Store, job: Job) -> bool:
    return store.claims.publish(job, audio=[AUDIO], timing=TIMING, warnings=[])


def cycle(store: Store, name: str) -> Callable[[], int]:
    """Submit a job, claim the next one and finish it. All jobs belong to one owner, whose account every cycle changes."""

    def once() -> int:
        submit(store, "everybody")
        job = store.claims.take(name, "m", LEASE_S)
        return int(job is not None and finish(store, job))

    return once


def beat(store: Store, name: str) -> Callable[[], int]:
    """Write the progress of a claimed job."""
    submit(store, name)
    job = store.claims.take(name, "m", LEASE_S)
    while job is None:  # another claimer had locked the row; this one's job is still queued
        job = store.claims.take(name, "m", LEASE_S)
    held = Beat(job.id, job.attempt, name, {"stage": "denoising", "step": 1, "steps": 8, "fraction": 0.1})

    def once() -> int:
        return 1 - len(store.claims.heartbeat([held], LEASE_S))

    return once


def _process(url: str, what: str, number: int, *, threads: int, seconds: float, ready: Any, counts: Any) -> None:
    local = threading.Barrier(threads, action=lambda: ready.wait(120))

    def claimer(index: int) -> int:
        store = Store(url)
        once = {"cycle": cycle, "beat": beat}[what](store, f"{number}-{index}")
        local.wait(120)
        until = time.monotonic() + seconds
        done = 0
        while time.monotonic() < until:
            done += once()
        store.close()
        return done

    with ThreadPoolExecutor(threads) as pool:
        counts.put(sum(pool.map(claimer, range(threads))))


def rate(url: str, what: str, claimers: int, seconds: float) -> float:
    """How many times per second all claimers together perform `what`."""
    spawn = multiprocessing.get_context("spawn")
    count = max(1, claimers // THREADS)
    ready = spawn.Barrier(count)
    counts = spawn.Queue()
    options = {"threads": min(claimers, THREADS), "seconds": seconds, "ready": ready, "counts": counts}
    processes = [spawn.Process(target=_process, args=(url, what, number), kwargs=options) for number in range(count)]
    for process in processes:
        process.start()
    done = sum(counts.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    return float(done / seconds)


# --- Beside finished jobs -------------------------------------------------------------------------------------------------


def fill(store: Store, count: int) -> None:
    """Insert `count` copies of one finished job, each a second older than the one before."""
    submit(store, "old")
    job = store.claims.take("w", "m", LEASE_S)
    assert job is not None
    assert finish(store, job)
    numbers = sa.select(sa.literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < count))
    replaced: dict[str, Any] = {
        "id": sa.literal("00000000-").concat(sa.cast(numbers.c.n, sa.Text)),
        "created_at": jobs.c.created_at - numbers.c.n,
        "finished_at": jobs.c.finished_at - numbers.c.n,
    }
    columns = [replaced.get(column.name, column) for column in jobs.columns]
    copies = sa.select(*columns).select_from(jobs.join(numbers, sa.true())).where(jobs.c.id == job.id)
    with store.database.write() as connection:
        if not store.database.is_sqlite:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.execute(jobs.insert().from_select([column.name for column in jobs.columns], copies))
    if not store.database.is_sqlite:  # PostgreSQL does this by itself soon after so many rows
        with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def in_turn(stores: list[Store], what: Callable[[Store], float]) -> list[float]:
    """The median of `what` on each store. The stores take turns, so that noise affects all of them."""
    taken: list[list[float]] = [[] for _ in stores]
    for _ in range(ROUNDS):
        for store, seconds in zip(stores, taken, strict=True):
            seconds.append(what(store))
    return [median(seconds) for seconds in taken]


def claim_s(store: Store) -> float:
    submit(store, "me")
    began = time.perf_counter()
    job = store.claims.take("w", "m", LEASE_S)
    seconds = time.perf_counter() - began
    assert job is not None
    assert finish(store, job)
    return seconds


def observe_s(store: Store) -> float:
    fleet = StoreFleet(store, "m", "d", ScalingArgs(), BreakerArgs())
    began = time.perf_counter()
    fleet.observe()
    return time.perf_counter() - began


def counts_s(store: Store) -> float:
    began = time.perf_counter()
    store.backlog.counts()
    return time.perf_counter() - began


# --- Both databases -------------------------------------------------------------------------------------------------------


@contextmanager
def opened(kind: str, server: str | None, folder: Path) -> Iterator[Store]:
    """An empty store with its tables, on SQLite, or on PostgreSQL if `server` is given."""
    if server is None:
        store = Store(f"sqlite:///{folder / (kind + str(time.monotonic_ns()))}.db")
        store.migrate()
        yield store
        store.close()
        return
    with empty_database(server) as url:
        store = Store(url)
        store.migrate()
        yield store
        store.close()


def measure(kind: str, server: str | None, folder: Path, given: argparse.Namespace) -> bool:
    """Print all figures of one database. Returns whether the bound holds."""
    with opened(kind, server, folder) as store:
        url = store.database.url.render_as_string(hide_password=False)
        cycles = rate(url, "cycle", given.claimers, given.seconds)
        beats = rate(url, "beat", given.claimers, given.seconds)
    gpus = 1 / (1 / JOB_S / cycles + BEATS / beats)
    print(
        f"{kind}, {given.claimers} claimers, per second: {cycles:,.0f} jobs submitted, claimed and finished; "
        f"{beats:,.0f} heartbeats"
    )
    print(
        f"{kind}: calculated for {gpus:,.0f} GPUs, with a job every {JOB_S:g} s and {BEATS:.2f} heartbeats per second on each",
        flush=True,
    )
    with opened(kind, server, folder) as empty, opened(kind, server, folder) as full:
        began = time.monotonic()
        fill(full, given.finished)
        print(f"{kind}: {given.finished:,} finished jobs inserted in {time.monotonic() - began:.0f} s", flush=True)
        stores = [empty, full]
        without, beside = in_turn(stores, claim_s)
        seen = in_turn(stores, observe_s)
        counted = in_turn(stores, counts_s)
    pairs = {"a claim": (without, beside), "the policy's observation": seen, "counting jobs by state": counted}
    for what, (alone, full_s) in pairs.items():
        print(
            f"{kind}: {what} takes {alone * 1e3:.2f} ms, beside the finished jobs {full_s * 1e3:.2f} ms: {full_s / alone:.2f} times"
        )
    return beside <= BOUND * without


def main() -> int:
    """Measure SQLite and PostgreSQL. Returns 0 if the bound holds for both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claimers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement of throughput")
    parser.add_argument("--finished", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgresql() as server:
        held = [measure("SQLite", None, Path(folder), given), measure("PostgreSQL", server, Path(folder), given)]
    if not all(held):
        print(f"A claim beside finished jobs takes more than {BOUND} times as long as without", file=sys.stderr)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long each operation on the queue takes with 100,000 queued jobs and with 100, on both databases.

Usage: python -m benchmarks.long_queue [--queued 100000] [--owners 20] [--rounds 200]     (part of `make bench`)

Times are medians of the store's part, since nothing else depends on the queue. The two queues take turns within one run, so that
noise affects both. Exits with 1 if an operation takes more than BOUND times as long with the long queue. The benchmark also
measures what it costs to have a claim on disk before its worker begins.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Final

import sqlalchemy as sa

from benchmarks.store import LEASE_S, finish, opened, submit
from serve_app.config import BreakerArgs, QueueArgs, ScalingArgs
from serve_app.jobs import Job, Status
from serve_app.music import MusicRequest
from serve_app.scaling.observation import StoreFleet
from serve_app.store import Store
from serve_app.store.jobs import Admission
from serve_app.store.places import FAR
from serve_app.store.shares import OWN_ORDER
from serve_app.store.tables import jobs
from tests.support.databases import postgresql

BOUND: Final = 1.5
"""An operation on the long queue may take this many times as long as on the short one."""

SHORT: Final = 100
LIMITS: Final = QueueArgs(max_jobs=10_000_000, max_owner_jobs=10_000_000, max_owner_audio_s=1e9)


def fill(store: Store, count: int, owners: int) -> None:
    """Queue `count` copies of one job, submitted a second apart by `owners` owners in turn."""
    first = submit(store, owner(0))
    numbers = sa.select(sa.literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < count - 1))
    replaced: dict[str, Any] = {
        "id": sa.literal("00000000-").concat(sa.cast(numbers.c.n + 100_000_000, sa.Text)),
        "owner": sa.literal("owner-").concat(sa.cast(numbers.c.n % owners, sa.Text)),
        "created_at": jobs.c.created_at - count + numbers.c.n,
        "deadline_at": jobs.c.deadline_at + 86_400,
    }
    columns = [replaced.get(column.name, column) for column in jobs.columns]
    copies = sa.select(*columns).select_from(jobs.join(numbers, sa.true())).where(jobs.c.id == first.id)
    with store.database.write() as connection:
        connection.execute(jobs.insert().from_select([column.name for column in jobs.columns], copies))
    store.backlog.recount()
    if not store.database.is_sqlite:  # PostgreSQL does this by itself soon after so many rows
        with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def owner(number: int) -> str:
    return f"owner-{number}"


class Queue:
    """One queue and the operations on it. A round does not change its length."""

    def __init__(self, store: Store, owners: int) -> None:
        self.store = store
        self._count = owners
        self._owners: Iterator[str] = cycle(owner(number) for number in range(owners))
        self._fleet = StoreFleet(store, "m", "d", ScalingArgs(), BreakerArgs())
        self._owner = ""
        self._newest: Job | None = None
        self._claimed: Job | None = None

    def prepare(self) -> None:
        """Begin a round with the next owner. The job that the last round claimed is finished and replaced by a new one."""
        if self._claimed is not None:
            finish(self.store, self._claimed)
            submit(self.store, self._claimed.owner)
        self._owner = next(self._owners)

    def submit(self) -> None:
        request = MusicRequest(prompt="benchmark", model="m", seed=1, duration=30)
        self._newest, _ = self.store.jobs.submit(
            request, owner=self._owner, deadline_s=3600, max_attempts=3, admission=Admission(LIMITS)
        )

    def look(self) -> None:
        found = self.store.jobs.get(self.newest.id, self._owner)
        self.store.backlog.places([found])

    def place_of_the_newest(self) -> None:
        assert self.newest.id in self.store.backlog.places([self.newest])

    def place_near_the_front(self) -> None:
        """The position of the owner's third job."""
        assert self.store.backlog.places([self.third])

    def place_far_back(self) -> None:
        """A position as far back as positions are counted; in the short queue that of the last job."""
        assert self.store.backlog.places([self.far])

    def list_50(self) -> None:
        found = self.store.jobs.page(owner=self._owner, limit=50)
        self.store.backlog.places([job for job in found if job.status is Status.QUEUED])

    def list_50_of_all(self) -> None:
        found = self.store.jobs.page(states=["queued"], limit=50)
        assert len(found) == 50
        self.store.backlog.places(found)

    def cancel(self) -> None:
        self.store.jobs.cancel(self.newest.id, self._owner)

    def claim(self) -> None:
        self._claimed = self.store.claims.take("w", "m", LEASE_S)
        assert self._claimed is not None

    def use(self) -> None:
        self.store.backlog.use(self._owner)

    def counts(self) -> None:
        self.store.backlog.counts()
        self.store.backlog.oldest_wait_s()

    def observe(self) -> None:
        self._fleet.observe()

    @property
    def newest(self) -> Job:
        """The job that was submitted in this round."""
        assert self._newest is not None
        return self._newest

    def find_jobs(self) -> None:
        """Find the owner's third job and the last one whose position is below FAR. This is not measured."""
        of_it = jobs.c.model == "m", jobs.c.owner == self._owner, jobs.c.state == "queued", jobs.c.rank == 5
        query = sa.select(jobs.c.id).where(*of_it).order_by(*OWN_ORDER).limit((FAR - 50) // self._count + 1)
        with self.store.database.read() as connection:
            ids = connection.execute(query).scalars().all()
        self.third = self.store.jobs.get(ids[2])
        self.far = self.store.jobs.get(ids[-1])


ASKED: Final[dict[str, Callable[[Queue], None]]] = {
    "submit": Queue.submit,
    "look up a job": Queue.look,
    "place of the newest": Queue.place_of_the_newest,
    "place near the front": Queue.place_near_the_front,
    "place far back": Queue.place_far_back,
    "list of 50, one owner's": Queue.list_50,
    "list of 50, all owners'": Queue.list_50_of_all,
    "cancel": Queue.cancel,
    "claim": Queue.claim,
    "an owner's use": Queue.use,
    "health's counts": Queue.counts,
    "the policy's observation": Queue.observe,
}


def compare(short: Queue, long: Queue, rounds: int) -> dict[str, tuple[float, float]]:
    """The median seconds of each operation on the short and on the long queue."""
    taken: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in ASKED}
    for number in range(rounds):
        for queue in (short, long):
            queue.prepare()
            queue.find_jobs()
        for what, ask in ASKED.items():
            pairs = list(zip((short, long), taken[what], strict=True))
            for queue, seconds in pairs if number % 2 else reversed(pairs):
                began = time.perf_counter()
                ask(queue)
                seconds.append(time.perf_counter() - began)
    return {what: (median(at_short), median(at_long)) for what, (at_short, at_long) in taken.items()}


def durable_claims(kind: str, store: Store, rounds: int) -> None:
    """Print how long a claim takes if it is on disk when it returns, and how long if it is not."""
    write = store.database.write
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds):
        durable = number % 2 == 0
        store.database.write = functools.partial(write, durable=durable)  # type: ignore[method-assign]
        began = time.perf_counter()
        job = store.claims.take("w", "m", LEASE_S)
        taken[durable].append(time.perf_counter() - began)
        store.database.write = write  # type: ignore[method-assign]
        assert job is not None
    on_disk = median(taken[True])
    not_yet = median(taken[False])
    print(
        f"{kind}: a claim that is on disk takes {on_disk * 1e3:.2f} ms ({1 / on_disk:,.0f} a second, one after the other), "
        f"one that is not {not_yet * 1e3:.2f} ms ({1 / not_yet:,.0f})",
        flush=True,
    )


def measure(kind: str, server: str | None, folder: Path, given: argparse.Namespace) -> bool:
    """Print the table of one database. Returns whether the bound holds."""
    with opened(kind, server, folder) as short, opened(kind, server, folder) as long:
        fill(short, SHORT, given.owners)
        began = time.monotonic()
        fill(long, given.queued, given.owners)
        print(
            f"\n{kind}: {given.queued:,} jobs of {given.owners} owners queued in {time.monotonic() - began:.0f} s\n"
            f"{'':26}{'at ' + str(SHORT):>12}{'at ' + format(given.queued, ','):>14}{'ratio':>8}",
            flush=True,
        )
        found = compare(Queue(short, given.owners), Queue(long, given.owners), given.rounds)
        for what, (at_short, at_long) in found.items():
            print(f"{what:26}{at_short * 1e3:9.2f} ms{at_long * 1e3:11.2f} ms{at_long / at_short:8.2f}", flush=True)
        durable_claims(kind, long, given.rounds)
    return all(at_long <= BOUND * at_short for at_short, at_long in found.values())


def main() -> int:
    """Measure SQLite and PostgreSQL. Returns 0 if the bound holds for both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--owners", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgresql() as server:
        held = [measure("SQLite", None, Path(folder), given), measure("PostgreSQL", server, Path(folder), given)]
    if not all(held):
        print(f"An operation takes more than {BOUND} times as long with the long queue", file=sys.stderr)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

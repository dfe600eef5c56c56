"""How quickly RunPod's routes answer while 10,000 jobs are queued, on both databases.

Usage: python -m benchmarks.runpod_backlog [--queued 10000] [--calls 200]     (part of `make bench`)

Times are those of a client, over HTTP. /health and /cancel are measured by their 99th percentile; /purge-queue, which empties the
queue, by the median of five backlogs. Exits with 1 if one of them takes more than BOUND_S.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from benchmarks.long_queue import fill
from benchmarks.store import submit
from serve_app.store import Store
from serve_app.store.tables import jobs
from tests.support.databases import private_postgresql
from tests.support.helpers import eventually
from tests.support.running import Service, running, simulated

BOUND_S: Final = 0.3
PURGES: Final = 5
MODEL: Final = "m"  # of the jobs that benchmarks.store submits
LIMITS: Final = {"max_jobs": 1_000_000, "max_owner_jobs": 1_000_000, "max_owner_audio_s": 1e9}


def seconds(call: Callable[[], Any]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]


def refill(store: Store, queued: int) -> None:
    """Replace all jobs by `queued` queued ones."""
    with store.database.write() as connection:
        connection.execute(jobs.delete())
    fill(store, queued, owners=1)


def measure(service: Service, queued: int, calls: int) -> dict[str, float]:
    """Seconds by route."""
    fill(service.store, queued, owners=1)
    key = service.store.keys.create("owner-0")
    client = service.client
    client.headers["Authorization"] = f"Bearer {key}"
    eventually(lambda: client.get("/v1/jobs").status_code == 200)
    base = f"/v2/{MODEL}"

    def post(path: str) -> dict[str, Any]:
        answer = client.post(f"{base}{path}", timeout=60)
        answer.raise_for_status()
        return dict(answer.json())

    health = [seconds(lambda: client.get(f"{base}/health").raise_for_status()) for _ in range(calls)]
    more = [submit(service.store, "owner-0").id for _ in range(calls)]
    cancel = [seconds(partial(post, f"/cancel/{job}")) for job in more]
    purges = []
    for _ in range(PURGES):
        refill(service.store, queued)
        began = time.monotonic()
        removed = post("/purge-queue")["removed"]
        purges.append(time.monotonic() - began)
        assert removed == queued, removed
    return {"/health p99": p99(health), "/cancel p99": p99(cancel), "/purge-queue median": median(purges)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=200)
    given = parser.parse_args()
    slowest = 0.0
    for database in ("sqlite", "postgresql"):
        with (
            private_postgresql() if database == "postgresql" else nullcontext() as server,
            tempfile.TemporaryDirectory() as folder,
        ):
            settings: dict[str, Any] = {"queue": LIMITS, **({"database_url": server.get_uri()} if server else {})}
            with running(Path(folder), {MODEL: simulated(workers=0)}, workers=0, **settings) as service:
                for route, took in measure(service, given.queued, given.calls).items():
                    print(f"{database:11} {route:20} {1000 * took:7.1f} ms", flush=True)
                    slowest = max(slowest, took)
    sys.exit(slowest > BOUND_S)


if __name__ == "__main__":
    main()

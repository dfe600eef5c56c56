"""A worker in a process of its own, which tests may kill: the simulated engine, and the planner that the settings name.

Usage: python -m tests.support.worker_process FOLDER MODEL_AS_JSON; it runs until it is killed.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs, ModelArgs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.store import Store
from serve_app.worker.planner_in_worker import planner_of_workers
from serve_app.worker.worker import Worker, WorkerOptions

NAME = "ace-step"


def new_worker(folder: Path, model: ModelArgs, store: Store) -> Worker:
    """A worker of a service in `folder`, with the simulated engine and the real planner of `model`."""
    args = AppArgs(data_dir=folder, models={NAME: model})
    return Worker(
        NAME,
        SimulatedEngine(NAME, model),
        store,
        Artifacts(args.resolved_artifacts_url),
        args.queue,
        options=WorkerOptions(planner=planner_of_workers(NAME, model, folder)),
    )


@contextmanager
def worker_process(folder: Path, model: ModelArgs) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of the service in `folder` as a process. It is killed at the end, unless it has ended."""
    command = [sys.executable, "-m", "tests.support.worker_process", str(folder), model.model_dump_json()]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """The command line."""
    folder = Path(sys.argv[1])
    model = ModelArgs.model_validate(json.loads(sys.argv[2]))
    store = Store(AppArgs(data_dir=folder).resolved_database_url)
    new_worker(folder, model, store).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()

"""Sophia without Ray: a real HTTP server, database and artifact folder, and workers in threads of the tests' process."""

import atexit
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

from serve_app.api.application import create_api
from serve_app.artifacts import Artifacts
from serve_app.audio import Encoders
from serve_app.config import AppArgs, ModelArgs
from serve_app.engine.protocol import Engine
from serve_app.engine.simulated import SimulatedEngine
from serve_app.ray_adapters.cluster import Node
from serve_app.store import Store
from serve_app.worker.planner_in_worker import planner_of_workers
from serve_app.worker.worker import Worker, WorkerOptions
from tests.support.helpers import eventually
from tests.support.migrated import migrate as migrate_store

SONG: Final[dict[str, Any]] = {"prompt": "warm lo-fi piano", "duration": 2, "seed": 7, "format": "flac"}
"""A request for a short song."""


@cache
def shared_encoders() -> Encoders:
    """One pool of encoders for all workers of the tests' process, because starting one takes long."""
    encoders = Encoders(2)
    atexit.register(encoders.close)
    return encoders


@dataclass
class Service:
    """A running Sophia and a client for it."""

    client: httpx.Client
    url: str
    args: AppArgs
    store: Store
    artifacts: Artifacts

    def use_key(self, name: str = "studio") -> str:
        """Create an API key, with which the client calls from now on. Returns it once it is known, so that keys are needed."""
        key = self.store.keys.create(name)
        self.client.headers["Authorization"] = f"Bearer {key}"
        eventually(lambda: self.client.get("/v1/jobs").status_code == 200)
        return key

    def submit(self, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/jobs", json={"prompt": "piano", "duration": 2, "format": "flac", **fields})
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ended(self, job_id: str) -> dict[str, Any]:
        return eventually(lambda: job if (job := self.job(job_id))["state"] not in ("queued", "running") else None)


def simulated(step_s: float = 0.01, workers: int = 1, **fields: Any) -> ModelArgs:
    """A model of the simulated engine, with a fixed number of workers."""
    fields["scaling"] = {"min_workers": workers, "max_workers": max(workers, 1)}
    return ModelArgs.model_validate({"source": "simulated", "simulated": {"step_s": step_s}, **fields})


@contextmanager
def running(
    folder: Path,
    models: dict[str, ModelArgs] | None = None,
    engine: Engine | None = None,
    *,
    workers: int = 1,
    cluster: Callable[[], list[Node]] | None = None,
    keys_needed: bool = False,
    migrate: bool = True,
    **settings: Any,
) -> Iterator[Service]:
    """Runs a service whose first model has `workers` workers; `engine` replaces the simulated engine."""
    args = AppArgs.model_validate({"data_dir": folder, "models": models or {"ace-step": simulated()}, **settings})
    name = next(iter(args.models))
    with ExitStack() as stack:
        store = Store(args.resolved_database_url, args.database)
        stack.callback(store.close)
        if migrate:
            migrate_store(store)
        artifacts = Artifacts(args.resolved_artifacts_url)
        for _ in range(workers):
            model = args.models[name]
            engine_of_it = engine or SimulatedEngine(name, model)
            worker = Worker(
                name,
                engine_of_it,
                store,
                artifacts,
                args.queue,
                options=WorkerOptions(
                    price_per_hour=model.price_per_hour,
                    encoding=args.encoding,
                    inputs=args.inputs,
                    planner=planner_of_workers(name, model, folder),
                ),
                encoders=shared_encoders(),
            )
            worker.start()
            stack.callback(worker.drain)
            # Its heartbeat's thread reports that it is ready, a moment after `start` has returned.
            eventually(partial(_has_started, store, worker.id))
        app = create_api(
            args,
            Store(args.resolved_database_url, args.database),
            artifacts,
            "test",
            cluster=cluster,
            keys_needed=keys_needed,
        )
        url = stack.enter_context(http_server(app))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        yield Service(client, url, args, store, artifacts)


@contextmanager
def running_with_https(
    folder: Path, models: dict[str, ModelArgs], certificate: Path, **settings: Any
) -> Iterator[Service]:
    """Runs a service whose `url` is that of a second API process, with https. See `http_server` for the certificate."""
    with running(folder, models, **settings) as service:
        app = create_api(service.args, Store(service.args.resolved_database_url), service.artifacts, "test")
        with http_server(app, certificate) as service.url:
            yield service


def _has_started(store: Store, worker: str) -> bool:
    return not any(row.id == worker and row.phase.is_starting for row in store.workers.seen())


@contextmanager
def http_server(app: Any, certificate: Path | None = None) -> Iterator[str]:
    """Serves an application and yields its address: https with a certificate for localhost, beside which its key lies."""
    key = certificate.with_name("key.pem") if certificate else None
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ssl_certfile=certificate, ssl_keyfile=key))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"https://localhost:{port}" if certificate else f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()

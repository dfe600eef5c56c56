"""The Serve deployment of a worker, and how it loads when loading fails."""

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import ray

from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs
from serve_app.engine.protocol import Engine
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import ConfigurationError, LoadError, StoreUnavailable
from serve_app.jobs import new_id
from serve_app.processes import Process, can_see
from serve_app.ray_adapters.raylet import watch_raylet
from serve_app.store import Breaker, Store
from serve_app.supervision import Work
from serve_app.worker.worker import Worker

logger = logging.getLogger("ray.serve.sophia")

_T = TypeVar("_T")

_LOOK_S: Final = 1.0


class MusicWorker:
    """Loaded when its constructor returns, drained before Serve lets its process go.

    The constructor neither returns nor raises while the model cannot be loaded: Serve would restart it at once, for ever, and a
    rolling update would throw good workers away. It tries again after growing pauses, and stops trying when the breaker is open;
    the autoscaling policy then asks for no workers.
    """

    async def __init__(self, model: str, args: AppArgs, place: str, deployment: str) -> None:  # type: ignore[misc]  # Serve awaits it
        """`place` is the `folder_id` of `data_dir` where the application was built, `deployment` which build it is.

        In a thread, so that Serve can end a replica that waits or loads.
        """
        self._ending = threading.Event()
        self._worker: Worker | None = None
        self._starting: _Start | None = None
        await asyncio.to_thread(self._start, model, args, place, deployment)

    def _start(self, model: str, args: AppArgs, place: str, deployment: str) -> None:
        watch_raylet()
        if args.database_url is None and not can_see(place):
            raise ConfigurationError(
                f"This worker's node or container cannot see the SQLite database of the one where Sophia was deployed, in "
                f"{args.data_dir}. Set SOPHIA_DATABASE_URL to a PostgreSQL address to use more than one node."
            )
        store = Store(args.resolved_database_url, args.database.of_a_worker)
        _migrate(store, self._ending)
        artifacts = Artifacts(args.resolved_artifacts_url)
        node = ray.util.get_node_ip_address()
        settings = args.models[model]
        price = settings.price_per_hour * (settings.num_gpus if settings.device == "cuda" else 1)
        self._worker = Worker(
            model,
            _engine(model, args),
            store,
            artifacts,
            args.queue,
            node,
            price,
            cluster=args.cluster_name or "",
            encoding=args.encoding,
            deployment=deployment,
        )
        self._starting = _Start(self._worker, store, model, deployment, args, self._ending)
        self._starting.until_ready()

    def check_health(self) -> None:
        """Serve asks this now and then; a worker whose threads have ended is replaced."""
        if self._worker is None or not self._worker.alive:
            raise RuntimeError("the worker's threads have ended; the log says why")

    async def __del__(self) -> None:
        self._ending.set()
        if self._starting is not None:
            await asyncio.to_thread(self._starting.let_go)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.drain)


class _Start:
    """The start of one worker, over as many loads as it takes."""

    def __init__(
        self, worker: Worker, store: Store, model: str, deployment: str, args: AppArgs, ending: threading.Event
    ) -> None:
        self._worker = worker
        self._store = store
        self._model = model
        self._deployment = deployment
        self._args = args
        self._ending = ending
        self._load: str | None = None

    def until_ready(self) -> None:
        """Return when the model is loaded. Raises LoadError when the worker is ended before that."""
        self._worker.announce()
        while True:
            self._wait_for_permission()
            load = new_id()
            cluster = self._args.cluster_name or ""
            self._told(
                partial(self._store.load_attempts.begin, self._model, self._deployment, Process.this(), load, cluster)
            )
            self._load = load
            try:
                self._worker.load()
            except LoadError as error:
                self._told(
                    partial(self._store.load_attempts.failed, load, error.code, error.message, self._worker.failed_in)
                )
            else:
                self._told(partial(self._store.load_attempts.succeeded, load))
                return
            finally:
                self._load = None

    def let_go(self) -> None:
        """The worker is ended on purpose: what it was loading is no failure. Not worth waiting for a store that is away."""
        load = self._load
        if load is None:
            return
        try:
            self._store.load_attempts.discard(load)
        except StoreUnavailable as error:
            logger.warning("a load that was ended on purpose may be counted as a crash: %s", error)

    def _told(self, tell: Callable[[], _T]) -> _T:
        """What `tell` gives, as soon as the store listens: an outage costs no model that has been loaded, and is no failure."""
        while True:
            try:
                return tell()
            except StoreUnavailable as error:
                logger.warning("the start of a worker of %s waits for the job database: %s", self._model, error)
                if self._ending.wait(_LOOK_S):
                    raise LoadError(f"Ended while it waited for the job database: {error}") from error

    def _wait_for_permission(self) -> None:
        """Until the breaker is closed and this host's pause is over; says meanwhile why it waits."""
        self._told(self._store.collect_dead_processes)
        while (breaker := self._breaker()).is_open or breaker.retry_in_s > 0:
            self._worker.waits(_why(breaker))
            if self._ending.wait(min(max(breaker.retry_in_s, 0.1), _LOOK_S)):
                raise LoadError(f"Ended while it waited to load {self._model}: {breaker.message}")

    def _breaker(self) -> Breaker:
        return self._told(
            lambda: self._store.load_attempts.breaker(
                self._model, self._deployment, self._args.breaker, Process.this().host
            )
        )


def _why(breaker: Breaker) -> str:
    if breaker.is_open:
        trial = "" if breaker.everywhere else ", but for a trial now and then (breaker.trial_s)"
        return (
            f"not trying again after {breaker.runs} failures until `sophia reset` or a deploy with a changed configuration{trial}: "
            f"{breaker.message}"
        )
    return f"trying again in {breaker.retry_in_s:.0f} s, after {breaker.runs} failures: {breaker.message}"


def _migrate(store: Store, ending: threading.Event) -> None:
    """Bring the schema up to date, as soon as that works: to raise would only make Serve start the worker again at once.

    Raises LoadError when the worker is ended before that.
    """
    work = Work(store.supervisor, "a worker's start", _LOOK_S)
    while True:
        try:
            store.migrate()
        except Exception as error:
            if ending.wait(work.failed(error)):
                raise LoadError(f"Ended while it waited for the job database: {work.problem}") from error
        else:
            work.went_well()
            return


def _engine(model: str, args: AppArgs) -> Engine:
    settings = args.models[model]
    if settings.source == "simulated":
        return SimulatedEngine(model, settings)
    from serve_app.engine.ace_step.engine import AceStepEngine  # torch: only here, and only now

    return AceStepEngine(model, settings, _weights(args.data_dir))


def _weights(data_dir: Path) -> Path:
    return data_dir / "weights"

"""The Serve deployments of workers that render, and of processes that only plan."""

import asyncio
import threading

import ray

from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs, planner_stage
from serve_app.engine.planner.making import new_planner
from serve_app.engine.protocol import Engine
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import ConfigurationError
from serve_app.processes import can_see
from serve_app.ray_adapters.raylet import watch_raylet
from serve_app.store import Store
from serve_app.worker.planner_in_worker import planner_of_workers
from serve_app.worker.planner_worker import PlannerWorker
from serve_app.worker.startup import Startup, migrate
from serve_app.worker.worker import Worker, WorkerOptions


class MusicWorker:
    """A replica: its constructor returns when the model is loaded, and it drains before Serve ends its process.

    The constructor neither returns nor raises while the model cannot be loaded. If it raised, Serve would restart it at once and
    without end, and a rolling update would stop working workers. Instead it retries after growing pauses, and stops when the
    breaker opens; the autoscaling policy then asks for no workers.
    """

    async def __init__(self, model: str, args: AppArgs, folder_id: str, deployment: str) -> None:  # type: ignore[misc]  # Serve awaits it
        """`folder_id` identifies the `data_dir` with which the application was built; `deployment` is the id of that build.

        The start runs in a thread, so that Serve can end a replica that waits or loads.
        """
        self._cancelled = threading.Event()
        self._worker: Worker | PlannerWorker | None = None
        self._startup: Startup | None = None
        await asyncio.to_thread(self._start, model, args, folder_id, deployment)

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        if self._worker is None or not self._worker.alive:
            raise RuntimeError("The worker's threads have ended; the log says why.")

    async def __del__(self) -> None:
        """Called by Serve, which waits for it before it ends the process."""
        self._cancelled.set()
        if self._startup is not None:
            await asyncio.to_thread(self._startup.cancel)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.drain)

    def _start(self, model: str, args: AppArgs, folder_id: str, deployment: str) -> None:
        watch_raylet()
        _check_database_is_shared(args, folder_id)
        store = Store(args.resolved_database_url, args.database.of_a_worker)
        migrate(store, self._cancelled)
        self._worker = self._new_worker(model, args, store, deployment)
        self._startup = Startup(self._worker, store, self._stage(model), deployment, args)
        if self._cancelled.is_set():  # `__del__` came before there was anything to cancel
            self._startup.cancel()
        self._startup.run()

    def _stage(self, model: str) -> str:
        """The name under which its loads are counted."""
        return model

    def _new_worker(self, model: str, args: AppArgs, store: Store, deployment: str) -> Worker | PlannerWorker:
        artifacts = Artifacts(args.resolved_artifacts_url)
        options = _options(model, args, deployment)
        return Worker(model, _engine(model, args, store), store, artifacts, args.queue, options=options)


class PlannerReplica(MusicWorker):
    """A replica that only plans. It starts, drains and ends as one that renders."""

    def _stage(self, model: str) -> str:
        return planner_stage(model)

    def _new_worker(self, model: str, args: AppArgs, store: Store, deployment: str) -> Worker | PlannerWorker:
        settings = args.models[model]
        devices = settings.planner.num_gpus if settings.device == "cuda" else 1
        options = WorkerOptions(
            node=ray.util.get_node_ip_address(),
            cluster=args.cluster_name or "",
            deployment=deployment,
            price_per_hour=settings.planner.price_per_hour * devices,
        )
        planner = new_planner(model, settings, args.weights_dir)
        return PlannerWorker(
            model, planner, store, args.queue, jobs_at_once=settings.planner.jobs_at_once, options=options
        )


def _check_database_is_shared(args: AppArgs, folder_id: str) -> None:
    if args.database_url is None and not can_see(folder_id):
        raise ConfigurationError(
            f"This worker's node or container cannot see the SQLite database of the one where Sophia was deployed, in "
            f"{args.data_dir}. Set SOPHIA_DATABASE_URL to a PostgreSQL address to use more than one node."
        )


def _options(model: str, args: AppArgs, deployment: str) -> WorkerOptions:
    settings = args.models[model]
    devices = settings.num_gpus if settings.device == "cuda" else 1
    return WorkerOptions(
        node=ray.util.get_node_ip_address(),
        cluster=args.cluster_name or "",
        deployment=deployment,
        price_per_hour=settings.price_per_hour * devices,
        encoding=args.encoding,
        inputs=args.inputs,
        planner=planner_of_workers(model, settings, args.weights_dir),
    )


def _engine(model: str, args: AppArgs, store: Store) -> Engine:
    settings = args.models[model]
    if settings.source == "simulated":
        return SimulatedEngine(model, settings)
    from serve_app.engine.ace_step.engine import AceStepEngine  # imports torch, which the simulated engine does without

    return AceStepEngine(model, settings, args.weights_dir, lambda: store.adapters.known(model, settings.adapters))

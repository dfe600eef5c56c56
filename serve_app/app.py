"""`serve run serve_config.yaml` calls `build`: the only place where the parts of Sophia are joined."""

import logging
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.api.application import create_api
from serve_app.api.listen_policy import keys_are_needed
from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs, ModelArgs
from serve_app.jobs import new_id
from serve_app.processes import folder_id
from serve_app.ray_adapters import ray_kv
from serve_app.ray_adapters.cluster import AliveNodes, cluster_id, http_host
from serve_app.ray_adapters.raylet import watch_raylet
from serve_app.scaling.serve_policy import autoscaling_config
from serve_app.settings import read_args
from serve_app.store import Store
from serve_app.weights import auto
from serve_app.worker.deployment import MusicWorker

logger = logging.getLogger("ray.serve")

DRAIN_GRACE_S: Final = 120
"""Beyond the longest run of a job, Serve waits so long for its file to be encoded and stored."""


def build(args: AppArgs | Mapping[str, Any]) -> serve.Application:
    """The Serve application: API processes in front, one deployment of workers for each model.

    Serve gives `args:` of its config file. It must not validate them itself, as it would for a pydantic class here: its errors
    repeat what was given, passwords too. Raises ConfigurationError.
    """
    if not isinstance(args, AppArgs):
        args = read_args(args)
    models = {name: _settled(name, model) for name, model in args.models.items()}
    args = args.model_copy(update={"models": models, "cluster_name": args.cluster_name or cluster_id()})
    deployment = new_id()  # a new build is a new chance: the crash breaker begins afresh
    if ray.is_initialized():
        ray_kv.put(_database_of(deployment), args.resolved_database_url)
    place = folder_id(args.data_dir)
    workers = [_workers(name, args, deployment).bind(name, args, place, deployment) for name in models]
    api = serve.deployment(Api).options(
        name="Api",
        num_replicas=args.api.replicas,
        max_ongoing_requests=args.api.max_ongoing,  # waiting requests and event streams cost a coroutine each
        ray_actor_options={"num_cpus": args.api.num_cpus},
        graceful_shutdown_timeout_s=60,
    )
    return api.bind(args, _commit(), deployment, *workers)


def _settled(name: str, model: ModelArgs) -> ModelArgs:
    model, why = auto.settled(name, model, auto.hardware_of_this_cluster)
    if why:
        logger.log(logging.WARNING if model.source == "embedded" else logging.INFO, "%s", why)
    return model


def _workers(name: str, args: AppArgs, deployment: str) -> serve.Deployment:
    model = args.models[name]
    options: dict[str, Any] = {"num_cpus": model.num_cpus}
    if model.device == "cuda":
        options["num_gpus"] = model.num_gpus
    if model.label_selector:
        options["label_selector"] = model.label_selector
    return serve.deployment(MusicWorker).options(
        name=f"MusicWorker-{name}",
        autoscaling_config=_scaling(name, args, deployment),
        ray_actor_options=options,
        graceful_shutdown_timeout_s=args.queue.run_limit_s + DRAIN_GRACE_S,
        health_check_period_s=5,
    )


def _scaling(name: str, args: AppArgs, deployment: str) -> dict[str, Any]:
    source = {
        "database": _database_of(deployment),
        "model": name,
        "deployment": deployment,
        "cluster": args.cluster_name or "",
        "breaker": args.breaker.model_dump(),
        "limits": args.database.model_dump(),
    }
    return autoscaling_config(args.models[name].scaling, "serve_app.scaling.observation:open_fleet", source)


def _database_of(deployment: str) -> str:
    """Under which name the vault holds the database's address, which may have a password in it."""
    return f"database-url-{deployment}"


@serve.ingress()
class Api:
    """The Serve deployment of the HTTP side."""

    def __init__(self, args: AppArgs, commit: str, deployment: str, *workers: DeploymentHandle) -> None:
        """`workers` are bound here only to be one application with the API; they are never called, they pull."""
        watch_raylet()
        self._args = args
        self._commit = commit
        self._deployment = deployment
        self._store = Store(args.resolved_database_url, args.database)
        self._keys_needed = keys_are_needed(args, http_host())

    def __serve_build_asgi_app__(self) -> FastAPI:
        artifacts = Artifacts(self._args.resolved_artifacts_url)
        return create_api(
            self._args, self._store, artifacts, self._commit, self._deployment, AliveNodes(), self._keys_needed
        )


def _commit() -> str:
    """The commit this code was built from: an image says it in SOPHIA_COMMIT, a checkout knows it."""
    if given := os.environ.get("SOPHIA_COMMIT"):
        return given
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - fixed words
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"

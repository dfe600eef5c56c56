"""Joins the parts of Sophia to one Serve application; `serve run serve_config.yaml` calls `build`."""

import logging
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray import serve

from serve_app.api.commit import this_commit
from serve_app.api.compat.families import served_families
from serve_app.api.deployment import Api
from serve_app.config import AppArgs, ModelArgs, planner_stage
from serve_app.jobs import new_id
from serve_app.processes import folder_id
from serve_app.ray_adapters import ray_kv
from serve_app.ray_adapters.cluster import cluster_id
from serve_app.scaling.serve_policy import autoscaling_config
from serve_app.settings import read_args
from serve_app.weights import auto
from serve_app.worker.deployment import MusicWorker, PlannerReplica

logger = logging.getLogger("ray.serve")

DRAIN_GRACE_S: Final = 120
"""Seconds that Serve waits for a draining worker beyond the run limit, so that it can encode and store its last song."""

_API_SHUTDOWN_S: Final = 60
_HEALTH_CHECK_S: Final = 5


def build(args: AppArgs | Mapping[str, Any]) -> serve.Application:
    """The Serve application: one deployment of API replicas, and one deployment of workers for each model.

    `args` is `args:` of the Serve config. It is a mapping, and not a pydantic class that Serve would validate, because Serve's
    errors repeat the given values, passwords included. Raises ConfigurationError.
    """
    if not isinstance(args, AppArgs):
        args = read_args(args)
    served_families(args.api)  # an unknown name must fail here, and not in every start of an API process
    args = _resolved(args)
    deployment = new_id()  # each build begins with a closed crash breaker
    if ray.is_initialized():
        ray_kv.put(_database_key(deployment), args.resolved_database_url)
    data_folder = folder_id(args.data_dir)
    workers = [
        _worker_deployment(name, args, deployment).bind(name, args, data_folder, deployment) for name in args.models
    ]
    planners = [
        _planner_deployment(name, args, deployment).bind(name, args, data_folder, deployment)
        for name, model in args.models.items()
        if model.planner.may_run_alone
    ]
    return _api_deployment(args).bind(args, this_commit(), deployment, *workers, *planners)


def _resolved(args: AppArgs) -> AppArgs:
    """The settings with `auto` and the cluster's name replaced by what this cluster has."""
    models = {name: _resolved_model(name, model) for name, model in args.models.items()}
    return args.model_copy(update={"models": models, "cluster_name": args.cluster_name or cluster_id()})


def _resolved_model(name: str, model: ModelArgs) -> ModelArgs:
    resolved, reason = auto.settled(name, model, auto.hardware_of_this_cluster)
    if reason:
        logger.info("%s", reason)
    return resolved


def _api_deployment(args: AppArgs) -> serve.Deployment:
    return serve.deployment(Api).options(
        name="Api",
        num_replicas=args.api.replicas,
        max_ongoing_requests=args.api.max_ongoing,  # a waiting request or event stream costs one coroutine
        ray_actor_options={"num_cpus": args.api.num_cpus},
        graceful_shutdown_timeout_s=_API_SHUTDOWN_S,
    )


def _worker_deployment(name: str, args: AppArgs, deployment: str) -> serve.Deployment:
    model = args.models[name]
    resources: dict[str, Any] = {"num_cpus": model.num_cpus}
    if model.device == "cuda":
        resources["num_gpus"] = model.num_gpus
    if model.label_selector:
        resources["label_selector"] = model.label_selector
    return serve.deployment(MusicWorker).options(
        name=f"MusicWorker-{name}",
        autoscaling_config=_autoscaling(name, args, deployment),
        ray_actor_options=resources,
        graceful_shutdown_timeout_s=args.queue.run_limit_s + DRAIN_GRACE_S,
        health_check_period_s=_HEALTH_CHECK_S,
    )


def _planner_deployment(name: str, args: AppArgs, deployment: str) -> serve.Deployment:
    """The processes that only plan songs of a model. Their device and labels are those of its workers.

    A running application cannot get another deployment, so this one exists even if the workers may turn out to plan themselves: it
    has no process then.
    """
    model = args.models[name]
    resources: dict[str, Any] = {"num_cpus": model.planner.num_cpus}
    if model.device == "cuda":
        resources["num_gpus"] = model.planner.num_gpus
    if model.label_selector:
        resources["label_selector"] = model.label_selector
    source = _source(name, args, deployment)
    return serve.deployment(PlannerReplica).options(
        name=f"Planner-{name}",
        autoscaling_config=autoscaling_config(
            model.planner.scaling,
            "serve_app.scaling.planner_fleet:open_planner_fleet",
            source | {"planner": model.planner.model_dump(mode="json")},
            initial_workers=args.stages[planner_stage(name)].min_workers,
        ),
        ray_actor_options=resources,
        graceful_shutdown_timeout_s=args.queue.run_limit_s + DRAIN_GRACE_S,
        health_check_period_s=_HEALTH_CHECK_S,
    )


def _autoscaling(name: str, args: AppArgs, deployment: str) -> dict[str, Any]:
    """Serve's autoscaling settings for a model."""
    source = _source(name, args, deployment)
    return autoscaling_config(args.models[name].scaling, "serve_app.scaling.observation:open_fleet", source)


def _source(name: str, args: AppArgs, deployment: str) -> dict[str, Any]:
    """Where the policy of a model reads and writes. Serve logs them and shows them in its status, so they hold no secret."""
    return {
        "database": _database_key(deployment),
        "model": name,
        "deployment": deployment,
        "cluster": args.cluster_name or "",
        "breaker": args.breaker.model_dump(),
        "limits": args.database.model_dump(),
    }


def _database_key(deployment: str) -> str:
    """The key under which `ray_kv` holds the database's URL, which may contain a password."""
    return f"database-url-{deployment}"

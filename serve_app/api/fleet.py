"""The state of workers, breakers and scaling decisions, read from the store. Every function that reads it blocks."""

from collections.abc import Iterable
from typing import Any

from serve_app.api.context import Context
from serve_app.config import ModelArgs, ScalingArgs, Variant
from serve_app.config.sources import NOISE, NOTES, RANDOM, SIMULATED
from serve_app.store import Breaker, WorkerRow
from serve_app.store.decisions import Decision
from serve_app.store.workers import cannot_store


def living_workers(context: Context) -> list[WorkerRow]:
    """The workers whose last heartbeat is at most a lease old."""
    lease_s = context.args.queue.lease_s
    return [row for row in context.store.workers.seen() if row.age_s < lease_s]


def of_model(workers: Iterable[WorkerRow], model: str) -> list[WorkerRow]:
    """Those of the workers that belong to the model."""
    return [worker for worker in workers if worker.model == model]


def is_ready(worker: WorkerRow) -> bool:
    """Whether the worker can generate and can store songs."""
    return worker.phase.is_ready and not cannot_store(worker)


def is_starting(worker: WorkerRow) -> bool:
    """Whether the worker has not finished starting."""
    return worker.phase.is_starting


def count_ready(workers: Iterable[WorkerRow]) -> int:
    """How many of the workers are ready."""
    return sum(map(is_ready, workers))


def breaker_of(context: Context, model: str) -> Breaker:
    """The model's crash breaker."""
    return context.store.load_attempts.breaker(model, context.deployment, context.args.breaker)


def decisions_by_model(context: Context) -> dict[str, list[Decision]]:
    """For each served model and each stage of planners, the scaling decision of every living cluster, this cluster's first.

    As long as this cluster has not decided, its decision is `min_workers`.
    """
    here = context.args.cluster_name or ""
    in_force = context.store.decisions.in_force(here)
    stages = context.args.stages
    return {name: _own_first(name, bounds, in_force.get(name, []), here) for name, bounds in stages.items()}


def _own_first(name: str, bounds: ScalingArgs, decisions: list[Decision], here: str) -> list[Decision]:
    if decisions and decisions[0].cluster == here:
        return decisions
    minimum = bounds.min_workers
    return [Decision(minimum, f"models.{name}.scaling.min_workers is {minimum}", here), *decisions]


def models_that_need_workers(context: Context) -> set[str]:
    """The models that should have a worker now, and the stages that should have a planner.

    A model that was scaled to zero because it is idle is not among them. A model that has no worker because its breaker is open
    or because an operator paused it is.
    """
    decisions = decisions_by_model(context)
    paused = context.store.pauses.all()
    return {
        name
        for name in context.args.stages
        if any(decision.target for decision in decisions[name]) or breaker_of(context, name).is_open or name in paused
    }


def checkpoint_facts(workers: Iterable[WorkerRow], model: str) -> dict[str, Any]:
    """What a worker of the model has read from its checkpoint (`variant`, `noise`); empty if none has loaded it yet."""
    known = [worker.facts for worker in of_model(workers, model) if worker.facts]
    return known[-1] if known else {}


def variant_of(workers: Iterable[WorkerRow], name: str, model: ModelArgs) -> Variant | None:
    """The model's variant, as a worker has read it from the checkpoint or as the settings say; None if neither is known."""
    variant: Variant | None = checkpoint_facts(workers, name).get("variant") or model.variant
    return variant


def aligns_lyrics(workers: Iterable[WorkerRow], name: str) -> bool | None:
    """Whether the model can tell when words are sung; None if no worker of this version has loaded it yet."""
    aligns: bool | None = checkpoint_facts(workers, name).get("aligns_lyrics")
    return aligns


def has_planners_alone(workers: Iterable[WorkerRow], name: str, model: ModelArgs | None) -> bool:
    """Whether processes that only plan make the model's plans, as the settings say or a worker that has measured it."""
    if model is None or not model.planner.may_run_alone:
        return False
    return (
        not model.planner.follows_workers
        or checkpoint_facts(workers, name).get("planner", {}).get("placement") == "own"
    )


def generates_noise(workers: Iterable[WorkerRow], name: str, model: ModelArgs) -> bool:
    """Whether the model generates no music, because its weights are random or it is a simulation."""
    return bool(checkpoint_facts(workers, name).get("noise", model.source in (RANDOM, SIMULATED)))


def note_on(workers: Iterable[WorkerRow], name: str, model: ModelArgs) -> str | None:
    """What the model is, if it is not a full checkpoint: the toy model that comes with Sophia, or something that makes no music."""
    return NOTES.get(model.source, NOISE if generates_noise(workers, name, model) else None)

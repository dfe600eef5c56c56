"""Why there is no song yet: what workers, breaker and cluster say, in words for those who wait."""

from collections import Counter
from datetime import UTC, datetime
from typing import Final

from serve_app.api.context import Context
from serve_app.config import ModelArgs
from serve_app.errors import DeviceLost
from serve_app.ray_adapters.cluster import Node
from serve_app.ray_adapters.label_selectors import Selector
from serve_app.store import Breaker, WorkerRow
from serve_app.store.decisions import Decision
from serve_app.store.pauses import Pause
from serve_app.store.places import FAR
from serve_app.store.workers import cannot_store

CARD_LABEL: Final = "ray.io/accelerator-type"


def living(parts: Context) -> list[WorkerRow]:
    """The workers heard of within a lease."""
    lease_s = parts.args.queue.lease_s
    return [row for row in parts.store.workers.seen() if row.age_s < lease_s]


def is_ready(worker: WorkerRow) -> bool:
    """Whether it can generate."""
    return worker.phase.is_ready and not cannot_store(worker)


def is_coming(worker: WorkerRow) -> bool:
    """Whether it is on its way to being ready."""
    return worker.phase.is_starting


def breaker_of(parts: Context, model: str) -> Breaker:
    """What the model's failed loads say."""
    return parts.store.load_attempts.breaker(model, parts.deployment, parts.args.breaker)


def why_waiting(parts: Context, model: str, ahead: int, workers: list[WorkerRow], pause: Pause | None) -> str:
    """Why a queued job waits that has `ahead` jobs before it. `workers` and `pause` are those of its model."""
    elsewhere = [] if model in parts.args.models else _other_clusters(parts, model)
    if model not in parts.args.models and not elsewhere:
        return (
            f"the model {model!r} is not in this service's configuration any more, and no other cluster on this queue has it. The "
            "job ends at its deadline; cancel it and submit it to another model (GET /v1/models)"
        )
    if pause is not None:
        return _paused(pause)
    ready = sum(map(is_ready, workers))
    if ready:
        jobs = "no job" if ahead == 0 else "1 job" if ahead == 1 else f"{ahead} jobs"
        jobs = f"at least {jobs}" if ahead == FAR else jobs
        return f"{jobs} before this one, {ready} worker{'s' * (ready != 1)} at work"
    if elsewhere:
        return f"another cluster plays this model, and has no worker for it yet: {elsewhere[0].reason}"
    return why_not_ready(parts, model, workers, pause)


def _other_clusters(parts: Context, model: str) -> list[Decision]:
    """What the other living clusters on this queue decided for a model."""
    here = parts.args.cluster_name or ""
    found = parts.store.decisions.in_force(here).get(model, [])
    return [decision for decision in found if decision.cluster != here]


def why_not_ready(parts: Context, model: str, workers: list[WorkerRow], pause: Pause | None) -> str:
    """Why a model has no worker that can generate. `workers` and `pause` are those of the model."""
    if pause is not None:
        return f"{_paused(pause)}; `sophia resume {model}` ends the pause"
    breaker = breaker_of(parts, model)
    if breaker.is_open:
        return (
            f"{_trouble(breaker)}: {breaker.message} Since {_clock(breaker.since)}, {breaker.runs} attempts; not retrying "
            f"until a changed configuration is deployed or an operator says `sophia reset {model}`{_trials(parts, breaker)}"
        )
    unstored = [worker for worker in workers if cannot_store(worker)]
    if unstored:
        return f"the workers take no jobs, since no song can be stored: {(unstored[0].error or {}).get('public')}"
    coming = [worker for worker in workers if is_coming(worker)]
    if coming:
        return f"workers are starting: {phase_in_words(parts, coming[0])}"
    if breaker.runs:
        return f"{_trouble(breaker)}: {breaker.message} {breaker.runs} attempts since {_clock(breaker.since)}; retrying"
    return why_no_worker(parts, model)


def _trials(parts: Context, breaker: Breaker) -> str:
    return "" if breaker.everywhere else f", but for one trial {parts.args.breaker.trial_s:g} s after the last failure"


def _trouble(breaker: Breaker) -> str:
    return "the device fails under jobs" if breaker.code == DeviceLost.code else "the model cannot be loaded"


def _paused(pause: Pause) -> str:
    return f"paused by the operator since {_clock(pause.since)}: {pause.reason}"


def phase_in_words(parts: Context, worker: WorkerRow) -> str:
    """What a starting worker does, and whether it still moves."""
    words = worker.detail or worker.phase
    if is_coming(worker) and worker.still_s > parts.args.breaker.hang_s:
        return f"hung: no progress for {worker.still_s:.0f} s in phase {worker.phase} ({words})"
    return words


def why_no_place(parts: Context, model: str) -> str | None:
    """Why Ray can put no more workers of a model anywhere; None where it can, and outside a cluster."""
    settings = parts.args.models[model]
    nodes = parts.cluster() if parts.cluster else []
    gpus = {"GPU": settings.num_gpus} if settings.device == "cuda" else {}
    needs = {"CPU": settings.num_cpus} | gpus
    with_card = [node for node in nodes if _labels_fit(node, settings) and _covers(node.total, gpus)]
    fitting = [node for node in with_card if _covers(node.total, needs)]
    if not nodes or any(_covers(node.free, needs) for node in fitting):
        return None
    if not fitting:
        return _no_cpus(settings, nodes) if with_card or not gpus else _no_card(settings, nodes)
    if gpus and _unannounced_gpus(parts, fitting) >= settings.num_gpus:
        return "a GPU that fits is in use by a process that has not reported yet: a worker that is starting, or another program"
    needed = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
    full = "the only node that fits is full" if len(fitting) == 1 else f"the {len(fitting)} nodes that fit are full"
    return f"{full}: a worker needs {needed}. It starts when there is room, or a node more"


def _unannounced_gpus(parts: Context, nodes: list[Node]) -> float:
    """GPUs on these nodes that Ray has assigned to a process, and that no worker has reported: it imports first."""
    addresses = {node.address for node in nodes}
    here = [parts.args.models.get(row.model) for row in living(parts) if row.node in addresses]
    announced = sum(model.num_gpus for model in here if model and model.device == "cuda")
    return sum(node.total.get("GPU", 0.0) - node.free.get("GPU", 0.0) for node in nodes) - announced


def why_no_worker(parts: Context, model: str) -> str:
    """Why not even a process of the model is there: nowhere to put it, asleep, or just not yet."""
    return why_no_place(parts, model) or "no worker of this model is running yet"


def _labels_fit(node: Node, settings: ModelArgs) -> bool:
    return all(Selector.parse(text).matches(node.labels.get(key)) for key, text in settings.label_selector.items())


def _covers(resources: dict[str, float], needs: dict[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in needs.items())


def _no_cpus(settings: ModelArgs, nodes: list[Node]) -> str:
    cluster = f"none of the cluster's {len(nodes)} nodes{_with_labels(settings.label_selector)}"
    return f"{cluster} has the {settings.num_cpus:g} CPUs that a worker reserves"


def _no_card(settings: ModelArgs, nodes: list[Node]) -> str:
    cards = Counter(
        node.labels.get(CARD_LABEL, "a GPU without a label") for node in nodes if node.total.get("GPU", 0.0) >= 1
    )
    has = ", ".join(f"{count} with {card}" for card, count in cards.items()) or "none with a GPU"
    return (
        f"no node has a GPU{_wanted(settings)}; the cluster has {len(nodes)} nodes, {has}. "
        "Add such a node, if no autoscaler is about to, or change the model's label_selector"
    )


def _wanted(settings: ModelArgs) -> str:
    """The card's name first, then what else the node must be."""
    others = dict(settings.label_selector)
    card = others.pop(CARD_LABEL, None)
    named = ""
    if card:
        selector = Selector.parse(card)
        named = f" {'other than' if selector.negated else 'named'} {' or '.join(selector.values)}"
    return named + " on a node" * bool(others) + _with_labels(others)


def _with_labels(selectors: dict[str, str]) -> str:
    parsed = {key: Selector.parse(text) for key, text in selectors.items()}
    words = [f"{key} {'other than ' * one.negated}{' or '.join(one.values)}" for key, one in parsed.items()]
    return " with " * bool(words) + " and ".join(words)


def _clock(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds or 0, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

"""Why Ray cannot place another worker of a model: a comparison of what the worker needs with what the nodes have."""

from collections import Counter
from typing import Final

from serve_app.api.context import Context
from serve_app.api.fleet import living_workers
from serve_app.config import ModelArgs
from serve_app.plurals import counted
from serve_app.ray_adapters.cluster import Node
from serve_app.ray_adapters.label_selectors import Selector

CARD_LABEL: Final = "ray.io/accelerator-type"


def why_not_placed(context: Context, model: str) -> str | None:
    """Why no node has room for another process of the model or stage. None if one has, and outside a cluster. Blocks."""
    nodes = context.cluster() if context.cluster else []
    if not nodes:
        return None
    settings = context.args.settings_of(model)
    if settings is None:
        return None
    needs = _needs(settings)
    with_card = [node for node in nodes if _labels_match(node, settings) and _covers(node.total, _gpus(settings))]
    fitting = [node for node in with_card if _covers(node.total, needs)]
    if any(_covers(node.free, needs) for node in fitting):
        return None
    if fitting:
        return _all_full(context, settings, fitting)
    if with_card or not _gpus(settings):
        return _no_cpus(settings, nodes)
    return _no_card(settings, nodes)


def _gpus(settings: ModelArgs) -> dict[str, float]:
    return {"GPU": settings.num_gpus} if settings.device == "cuda" else {}


def _needs(settings: ModelArgs) -> dict[str, float]:
    return {"CPU": settings.num_cpus} | _gpus(settings)


def _labels_match(node: Node, settings: ModelArgs) -> bool:
    return all(Selector.parse(text).matches(node.labels.get(key)) for key, text in settings.label_selector.items())


def _covers(resources: dict[str, float], needs: dict[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in needs.items())


def _all_full(context: Context, settings: ModelArgs, fitting: list[Node]) -> str:
    if _gpus(settings) and _unreported_gpus(context, fitting) >= settings.num_gpus:
        return "a GPU that fits is in use by a process that has not reported yet: a worker that is starting, or another program"
    needed = " and ".join(f"{amount:g} {name}" for name, amount in _needs(settings).items())
    full = "the only node that fits is full" if len(fitting) == 1 else f"the {len(fitting)} nodes that fit are full"
    return f"{full}: a worker needs {needed}. It starts when a node has room or is added"


def _unreported_gpus(context: Context, nodes: list[Node]) -> float:
    """GPUs of these nodes that Ray has assigned but no worker has reported: a worker reports only after its imports."""
    addresses = {node.address for node in nodes}
    models = [context.args.settings_of(row.model) for row in living_workers(context) if row.node in addresses]
    reported = sum(model.num_gpus for model in models if model and model.device == "cuda")
    assigned = sum(node.total.get("GPU", 0.0) - node.free.get("GPU", 0.0) for node in nodes)
    return assigned - reported


def _no_cpus(settings: ModelArgs, nodes: list[Node]) -> str:
    return (
        f"no node{_with_labels(settings.label_selector)} has as many CPUs as a worker reserves "
        f"(num_cpus is {settings.num_cpus:g}); the cluster has {counted(len(nodes), 'node')}"
    )


def _no_card(settings: ModelArgs, nodes: list[Node]) -> str:
    cards = Counter(
        node.labels.get(CARD_LABEL, "a GPU without a label") for node in nodes if node.total.get("GPU", 0.0) >= 1
    )
    has = ", ".join(f"{count} with {card}" for card, count in cards.items()) or "none with a GPU"
    return (
        f"no node has a GPU{_wanted(settings)}; the cluster has {counted(len(nodes), 'node')}, {has}. "
        "Add such a node, unless an autoscaler will, or change the model's label_selector"
    )


def _wanted(settings: ModelArgs) -> str:
    """The GPU and the node that the selector asks for, as in ` named L4 on a node with zone a`."""
    others = dict(settings.label_selector)
    card = others.pop(CARD_LABEL, None)
    named = ""
    if card:
        selector = Selector.parse(card)
        named = f" {'other than' if selector.negated else 'named'} {' or '.join(selector.values)}"
    return named + (f" on a node{_with_labels(others)}" if others else "")


def _with_labels(selectors: dict[str, str]) -> str:
    """The labels that a node must have, as in ` with zone a or b and rack other than 3`; empty without selectors."""
    phrases = [_label_phrase(key, Selector.parse(text)) for key, text in selectors.items()]
    return f" with {' and '.join(phrases)}" if phrases else ""


def _label_phrase(key: str, selector: Selector) -> str:
    return f"{key} {'other than ' if selector.negated else ''}{' or '.join(selector.values)}"

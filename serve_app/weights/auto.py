"""What `source: auto` and `device: auto` mean: one answer for the service, `sophia doctor` and `sophia weights`.

The cluster's hardware decides, not that of the machine on which the question is asked: a head without a GPU plays nothing itself.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import ray

from serve_app.config import ModelArgs
from serve_app.config.sources import EMBEDDED, NOTES, SIMULATED
from serve_app.weights import DEFAULT_REPOSITORY, DEFAULT_REVISION

PATIENCE_S: Final = 20.0
"""A cluster that does not say within so many seconds what it has is taken for none."""

# In a process of its own: Ray ends a process whose cluster does not answer, and prints much.
_ASK: Final = (
    "import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR'); "
    "print('GPUS', ray.cluster_resources().get('GPU', 0))"
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """Whether there is a GPU, and where: `place` begins a sentence."""

    has_gpu: bool
    place: str


def hardware_of_this_cluster() -> Hardware:
    """What the cluster has in which this process runs; nothing outside of one."""
    return Hardware(ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0, "this cluster")


def hardware_from_outside() -> Hardware:
    """What the cluster has that this machine belongs to, or RAY_ADDRESS names; this machine's own when none answers."""
    gpus = _gpus_of_cluster()
    if gpus is not None:
        return Hardware(gpus > 0, "the Ray cluster that answers here")
    import torch

    return Hardware(torch.cuda.is_available(), "no Ray cluster answers here, and this machine")


def _gpus_of_cluster() -> float | None:
    try:
        asked = subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    told = [line.split()[1] for line in asked.stdout.splitlines() if line.startswith("GPUS ")]
    return float(told[0]) if told else None


def settled(name: str, model: ModelArgs, look: Callable[[], Hardware]) -> tuple[ModelArgs, str]:
    """Model `name` without any `auto` in source and device, and why in a sentence, empty where `source` was given.

    `look` is called only when the hardware matters.
    """
    if model.device != "auto":
        device = model.device
        why = f"models.{name}.device is {model.device}"
    elif model.source == SIMULATED:
        device = "cpu"
        why = ""
    else:
        hardware = look()
        device = "cuda" if hardware.has_gpu else "cpu"
        why = f"{hardware.place} has {'a' if hardware.has_gpu else 'no'} GPU"
    if model.source != "auto":
        return model.model_copy(update={"device": device}), ""
    if device == "cuda":
        real = {"source": DEFAULT_REPOSITORY, "revision": model.revision or DEFAULT_REVISION}
        return model.model_copy(update={"device": device, **real}), f"{name} plays {DEFAULT_REPOSITORY}: {why}"
    return model.model_copy(update={"device": device, "source": EMBEDDED}), (
        f"{name} uses the embedded checkpoint, {NOTES[EMBEDDED]}, because {why}. For real songs, use a GPU, or set "
        f"models.{name}.source (and device: cpu, which is slow) in the configuration"
    )

"""Resolves `source: auto` and `device: auto`, for the service, `sophia doctor` and `sophia weights` alike.

The hardware of the whole cluster decides, not that of this machine, because a head node without a GPU does not generate.
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

QUERY_TIMEOUT_S: Final = 20.0
"""If a cluster does not report its resources within this time, Sophia assumes that there is no cluster."""

# Run in a separate process, because Ray exits the process if the cluster does not answer, and prints a lot.
_QUERY: Final = (
    "import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR'); "
    "print('GPUS', ray.cluster_resources().get('GPU', 0))"
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """Whether there is a GPU, and where. `place` is the subject of a sentence: `this cluster`."""

    has_gpu: bool
    place: str


def hardware_of_this_cluster() -> Hardware:
    """Returns the hardware of the cluster in which this process runs; no GPU if it runs outside of a cluster."""
    return Hardware(ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0, "this cluster")


def hardware_from_outside() -> Hardware:
    """Returns the hardware of the cluster at RAY_ADDRESS or on this machine. If none answers, returns that of this machine."""
    gpus = _gpus_of_cluster()
    if gpus is not None:
        return Hardware(gpus > 0, "the Ray cluster that this machine can reach")
    return Hardware(hardware_of_this_machine().has_gpu, "no Ray cluster is reachable, and this machine")


def hardware_of_this_machine() -> Hardware:
    """Returns the hardware of this machine, whatever cluster it can reach."""
    import torch

    return Hardware(torch.cuda.is_available(), "this machine")


def _gpus_of_cluster() -> float | None:
    """Returns the number of GPUs in the cluster; None if no cluster answers."""
    try:
        query = subprocess.run(  # noqa: S603 - the arguments are constants
            [sys.executable, "-c", _QUERY], capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    counts = [line.split()[1] for line in query.stdout.splitlines() if line.startswith("GPUS ")]
    return float(counts[0]) if counts else None


def settled(name: str, model: ModelArgs, look: Callable[[], Hardware]) -> tuple[ModelArgs, str]:
    """Returns the settings of model `name` with `auto` resolved in source and device, and a sentence that gives the reason.

    The sentence is empty if the source was not `auto`. `look` returns the hardware; it is called only if that matters.
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
        return model.model_copy(update={"device": device, **real}), f"{name} uses {DEFAULT_REPOSITORY}, because {why}"
    return model.model_copy(update={"device": device, "source": EMBEDDED}), (
        f"{name} uses the embedded checkpoint, {NOTES[EMBEDDED]}, because {why}. For real songs, use a GPU, or set "
        f"models.{name}.source (and device: cpu, which is slow) in the configuration"
    )

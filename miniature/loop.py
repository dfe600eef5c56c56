"""The loop of a stage that trains: it steps, saves and reports until its time is over."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Protocol

from miniature.optimizers import rate_at
from miniature.stage import Session

REPORT_EVERY = 50


class Training(Protocol):
    """What the loop needs of a stage's training."""

    steps: int

    def save(self) -> None:
        """Writes all that the training needs to go on from here."""


def run(training: Training, step: Callable[[float], Mapping[str, float]], session: Session) -> None:
    """Calls `step` until the session ends, with the share of the full learning rate, then saves.

    `step` counts up `training.steps` and returns losses by name, whose means are printed now and then.
    """
    first = training.steps
    losses: dict[str, list[float]] = defaultdict(list)
    since = time.monotonic()
    while session.running:
        rate = rate_at(training.steps - first, session.share)
        for name, loss in step(rate).items():
            losses[name].append(loss)
        session.save_now_and_then(training.save)
        if training.steps % REPORT_EVERY == 0:
            means = "  ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in losses.items())
            speed = REPORT_EVERY / (time.monotonic() - since)
            left_min = max(0.0, session.left_s) / 60
            print(f"step {training.steps}  {means}  {speed:.2f} steps/s  {left_min:.1f} min left", flush=True)
            losses.clear()
            since = time.monotonic()
    training.save()
    print(f"saved step {training.steps}", flush=True)

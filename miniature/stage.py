"""What the training stages share: the time of a call, its priority, how it stops, and the state that it goes on from."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

WORK_FOLDER = Path("build/miniature")
SAVE_EVERY_S = 180.0


class Session(AbstractContextManager["Session"]):
    """The time that one call may train: it ends after `hours`, or when SIGTERM or Ctrl-C asks for it.

    A signal only ends the loop that asks `running`, so that the stage can save its state and leave in order.
    """

    def __init__(self, hours: float) -> None:
        self._seconds = hours * 3600
        self._started = time.monotonic()
        self._saved = self._started
        self._asked_to_stop = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Session":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._asked_to_stop = True

    @property
    def running(self) -> bool:
        return not self._asked_to_stop and self.left_s > 0

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float:
        return self._seconds - self.spent_s

    @property
    def share(self) -> float:
        """How much of the call's time has passed, from 0 to 1."""
        return min(1.0, self.spent_s / self._seconds)

    def save_now_and_then(self, save: Callable[[], None]) -> None:
        """Calls `save` if the last call of it is a few minutes ago."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            save()
            self._saved = time.monotonic()


def be_idle(threads: int) -> None:
    """Lets this process compute with `threads` threads and only with processor time that nobody else wants."""
    torch.set_num_threads(threads)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes a stage's state so that an interruption at any moment leaves the former state or this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state that `save_state` wrote, or None if there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state

"""Background work that goes on whatever it meets: nobody waits for its result, so nobody else would see it fail.

A step that fails is logged, with its traceback the first time and then in at most one line a minute, and is tried again after
a pause. While it fails, its supervisor tells it to /v1/health, and the metric `sophia_background_failing` is 1.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from serve_app.errors import SophiaError

logger = logging.getLogger("ray.serve.sophia")

TELL_EVERY_S: Final = 60.0
LONGEST_PAUSE_S: Final = 30.0


class Supervisor:
    """Knows the background work of one process, as long as somebody does it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: weakref.WeakSet[Work] = weakref.WeakSet()

    def add(self, work: "Work") -> None:
        """Tell the problems of this work, too."""
        with self._lock:
            self._works.add(work)

    def problems(self) -> list[str]:
        """What is wrong with the background work, in words that anybody may read; empty when all goes well."""
        with self._lock:
            works = list(self._works)
        return sorted(problem for work in works if (problem := work.problem))


class Work:
    """How a piece of background work is doing. Whoever does it says after each step how it went."""

    def __init__(
        self, supervisor: Supervisor, name: str, pause_s: float = 1.0, longest_pause_s: float = LONGEST_PAUSE_S
    ) -> None:
        """`pause_s` is how long it waits after a failure; after ones that nobody foresaw twice as long each time, up to the
        longest pause."""
        self.name = name
        self._pause_s = pause_s
        self._longest_pause_s = max(pause_s, longest_pause_s)
        self._error: Exception | None = None
        self._failures = 0
        self._since = self._told_at = 0.0
        self._traced: set[type[Exception]] = set()
        supervisor.add(self)

    @property
    def problem(self) -> str:
        """Why it does not get on; empty when it does."""
        error = self._error
        if error is None:
            return ""
        if isinstance(error, SophiaError):
            return f"{self.name}: {error.message}"
        return f"{self.name} fails ({type(error).__name__}) and is tried again; the log of the process says more"

    def went_well(self) -> None:
        """A step has ended as it should."""
        if self._error is None:
            return
        logger.info("%s goes on after %.0f s", self.name, time.monotonic() - self._since)
        self._error = None
        self._failures = 0
        self._traced.clear()
        self._tell_metric(0)

    def failed(self, error: Exception) -> float:
        """A step has failed; says for how many seconds to wait before the next."""
        if self._error is None:
            self._since = time.monotonic()
            self._tell_metric(1)
        self._error = error
        self._failures += 1
        self._log(error)
        if isinstance(error, SophiaError):
            return self._pause_s
        return min(self._pause_s * 2.0 ** min(self._failures - 1, 10), self._longest_pause_s)

    def _log(self, error: Exception) -> None:
        unforeseen = not isinstance(error, SophiaError)
        if unforeseen and type(error) not in self._traced:
            self._traced.add(type(error))
            logger.error("%s failed and is tried again", self.name, exc_info=error)
        elif self._failures == 1:
            logger.warning("%s waits: %s", self.name, error)
        elif time.monotonic() > self._told_at + TELL_EVERY_S:
            seconds = time.monotonic() - self._since
            logger.warning("%s has failed %s times in %.0f s: %s", self.name, self._failures, seconds, self.problem)
        else:
            return
        self._told_at = time.monotonic()

    def _tell_metric(self, failing: int) -> None:
        from serve_app import metrics  # here: it imports Ray, a second's work that a program with a store may not need

        metrics.background(self.name, failing)


class WorkThread(Work):
    """A thread that repeats a step until it is closed. A step waits by itself when there is nothing to do, on `ended` say."""

    def __init__(
        self,
        supervisor: Supervisor,
        name: str,
        step: Callable[[], None],
        pause_s: float = 1.0,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        super().__init__(supervisor, name, pause_s, longest_pause_s)
        self.ended = threading.Event()
        """Set when the thread shall end after the step under way."""
        self._step = step
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def started(self) -> bool:
        """Whether it was ever started."""
        return self._thread.ident is not None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    @property
    def problem(self) -> str:
        """Why it does not get on; empty when it does, and when it was ended."""
        if self.ended.is_set() or not self.started:
            return ""
        return super().problem if self.alive else f"{self.name} has ended by itself; the log of the process says why"

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for its end, if it was started."""
        if self.started:
            self._thread.join()

    def close(self) -> None:
        """End after the step under way."""
        self.ended.set()
        self.join()

    def _run(self) -> None:
        try:
            while not self.ended.is_set():
                try:
                    self._step()
                except Exception as error:
                    self.ended.wait(self.failed(error))
                else:
                    self.went_well()
        finally:
            if not self.ended.is_set():
                self._tell_metric(1)

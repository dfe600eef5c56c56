"""Health of background work: tasks that retry after every error and report while they fail.

No caller waits for the result of background work, so its errors must be made visible. A failing task is logged, with a
traceback for each new type of error and then at most one line a minute. While it fails, /v1/health shows its problem and the
metric `sophia_background_failing` is 1. `PeriodicThread` is the loop that Sophia's background threads share; coroutines report
to a `SupervisedTask` of their own.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from serve_app.errors import SophiaError
from serve_app.log_throttle import LogThrottle

logger = logging.getLogger("ray.serve.sophia")

LOG_EVERY_S: Final = 60.0
"""A task that keeps failing logs at most one line in this time."""

MAX_RETRY_S: Final = 30.0
"""The longest backoff, unless a task sets its own."""


class Supervisor:
    """The background tasks of one process. It holds weak references, so a task leaves it when its owner drops it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: weakref.WeakSet[SupervisedTask] = weakref.WeakSet()

    def add(self, task: "SupervisedTask") -> None:
        """Include this task in `problems`."""
        with self._lock:
            self._tasks.add(task)

    def problems(self) -> list[str]:
        """One sentence for each failing task, safe to show to any client; empty when no task fails."""
        with self._lock:
            tasks = list(self._tasks)
        return sorted(problem for task in tasks if (problem := task.problem))


class SupervisedTask:
    """Health, logging and backoff of one background task. The code that runs the task records the result of each step."""

    def __init__(
        self, supervisor: Supervisor, name: str, retry_s: float = 1.0, max_retry_s: float = MAX_RETRY_S
    ) -> None:
        """`retry_s`: seconds to wait after a failure. Unexpected errors in a row double the wait, up to `max_retry_s`."""
        self.name = name
        self._retry_s = retry_s
        self._max_retry_s = max(retry_s, max_retry_s)
        self._error: Exception | None = None
        self._failures = 0
        self._failing_since = 0.0
        self._log_throttle = LogThrottle(LOG_EVERY_S)
        self._traced: set[type[Exception]] = set()
        supervisor.add(self)

    @property
    def problem(self) -> str:
        """Why the task fails, as one sentence; empty when its last step succeeded."""
        error = self._error
        if error is None:
            return ""
        if isinstance(error, SophiaError):
            return f"{self.name}: {error.message}"
        return f"{self.name} fails with {type(error).__name__} and is retried; see the log of its process"

    def record_success(self) -> None:
        """A step has succeeded: the task is healthy, and the backoff starts again at `retry_s`."""
        if self._error is None:
            return
        logger.info("%s works again after %.0f s", self.name, time.monotonic() - self._failing_since)
        self._error = None
        self._failures = 0
        self._traced.clear()
        self._log_throttle.reset()
        self._set_metric(failing=False)

    def record_failure(self, error: Exception) -> float:
        """A step has failed with `error`. Returns the seconds to wait before the next try."""
        if self._error is None:
            self._failing_since = time.monotonic()
            self._set_metric(failing=True)
        self._error = error
        self._failures += 1
        self._log(error)
        if isinstance(error, SophiaError):
            return self._retry_s
        return min(self._retry_s * 2.0 ** min(self._failures - 1, 10), self._max_retry_s)

    def _log(self, error: Exception) -> None:
        due = self._log_throttle.due()
        if not isinstance(error, SophiaError) and type(error) not in self._traced:
            self._traced.add(type(error))
            logger.error("%s failed and will be retried", self.name, exc_info=error)
        elif self._failures == 1:
            logger.warning("%s will be retried: %s", self.name, error)
        elif due:
            failing_s = time.monotonic() - self._failing_since
            logger.warning("%s has failed %s times in %.0f s: %s", self.name, self._failures, failing_s, self.problem)

    def _set_metric(self, failing: bool) -> None:
        from serve_app import metrics  # imported late: it imports Ray, which takes a second and not every program needs

        metrics.background(self.name, int(failing))


class PeriodicThread(SupervisedTask):
    """A daemon thread that calls `step` again and again until it is stopped.

    `step` runs, then the thread waits `period_s`; a step that returns a number chooses that wait itself, in seconds. A step that
    raises is retried after the backoff of `SupervisedTask`. A step that blocks must watch `stopping`.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        name: str,
        step: Callable[[], float | None],
        period_s: float = 0.0,
        *,
        retry_s: float = 1.0,
        max_retry_s: float = MAX_RETRY_S,
    ) -> None:
        super().__init__(supervisor, name, retry_s, max_retry_s)
        self.stopping = threading.Event()
        """Set when the thread must end after the current step."""
        self._step = step
        self._period_s = period_s
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def problem(self) -> str:
        """Why the task fails, or that its thread died; empty before the start, after `stopping` and when all is well."""
        if self.stopping.is_set() or not self.started:
            return ""
        return super().problem if self.alive else f"{self.name}: its thread has died; see the log of its process"

    def start(self) -> None:
        """Start the thread. Call it once."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended; return at once if it was never started."""
        if self.started:
            self._thread.join()

    def close(self) -> None:
        """Stop after the current step, and wait for it."""
        self.stopping.set()
        self.join()

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.stopping.wait(self._run_step())
        finally:
            if not self.stopping.is_set():
                self._set_metric(failing=True)

    def _run_step(self) -> float:
        """Run one step. Returns the seconds to wait before the next."""
        try:
            wait_s = self._step()
        except Exception as error:
            return self.record_failure(error)
        self.record_success()
        return self._period_s if wait_s is None else wait_s

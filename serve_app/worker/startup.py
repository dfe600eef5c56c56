"""The start of a worker: loads the model, and after a failure waits for the breaker before the next load."""

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from serve_app.config import AppArgs
from serve_app.errors import LoadError, StoreUnavailable
from serve_app.jobs import new_id
from serve_app.plurals import counted
from serve_app.processes import Process
from serve_app.store import Breaker, Store
from serve_app.supervision import SupervisedTask

logger = logging.getLogger("ray.serve.sophia")

_T = TypeVar("_T")

RETRY_S: Final = 1.0


class Loading(Protocol):
    """A worker that starts: it renders or plans."""

    @property
    def failed_phase(self) -> str:
        """The phase in which the last load failed."""

    def announce(self) -> None:
        """Write the worker's row to the store and start the heartbeat."""

    def load(self) -> None:
        """Load the model. May be called again after a LoadError."""

    def show_pause(self, reason: str) -> None:
        """Show in the worker's row why it does not load now."""


class Startup:
    """Loads one worker's model, and retries until that succeeds. Every attempt is a row of the store's load attempts."""

    def __init__(self, worker: Loading, store: Store, model: str, deployment: str, args: AppArgs) -> None:
        self._worker = worker
        self._store = store
        self._model = model
        self._deployment = deployment
        self._args = args
        self._cancelled = threading.Event()
        self._load_id: str | None = None

    def run(self) -> None:
        """Return when the model is loaded. Raises LoadError after `cancel`."""
        self._worker.announce()
        while True:
            self._wait_for_breaker()
            if self._try_to_load():
                return

    def cancel(self) -> None:
        """End the start. A load under way does not count as a failure, unless the store is unreachable."""
        self._cancelled.set()
        load = self._load_id
        if load is None:
            return
        try:
            self._store.load_attempts.discard(load)
        except StoreUnavailable as error:
            logger.warning("a cancelled load may be counted as a crash: %s", error)

    def _try_to_load(self) -> bool:
        """Load once and record the result. Whether the model is loaded."""
        attempts = self._store.load_attempts
        load = new_id()
        cluster = self._args.cluster_name or ""
        self._until_the_store_answers(
            lambda: attempts.begin(self._model, self._deployment, Process.this(), load, cluster)
        )
        self._load_id = load
        try:
            self._worker.load()
        except LoadError as error:
            code = error.code
            message = error.message
            self._until_the_store_answers(lambda: attempts.failed(load, code, message, self._worker.failed_phase))
            return False
        else:
            self._until_the_store_answers(lambda: attempts.succeeded(load))
            return True
        finally:
            self._load_id = None

    def _wait_for_breaker(self) -> None:
        """Return when the breaker is closed and this host's pause is over. The worker's row shows the reason meanwhile."""
        self._until_the_store_answers(self._store.collect_dead_processes)
        while (breaker := self._until_the_store_answers(self._breaker)).is_open or breaker.retry_in_s > 0:
            self._worker.show_pause(_pause_reason(breaker))
            if self._cancelled.wait(min(max(breaker.retry_in_s, 0.1), RETRY_S)):
                raise LoadError(f"The worker was stopped while it waited to load {self._model}: {breaker.message}")

    def _breaker(self) -> Breaker:
        host = Process.this().host
        return self._store.load_attempts.breaker(self._model, self._deployment, self._args.breaker, host)

    def _until_the_store_answers(self, action: Callable[[], _T]) -> _T:
        """The result of `action`, retried while the store is unreachable.

        An outage neither makes a load fail nor discards a loaded model.
        """
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                logger.warning("the start of a worker of %s waits for the job database: %s", self._model, error)
                if self._cancelled.wait(RETRY_S):
                    raise LoadError(f"The worker was stopped while it waited for the job database: {error}") from error


def migrate(store: Store, cancelled: threading.Event) -> None:
    """Migrate the database, and retry after every failure. If the worker raised, Serve would restart it at once.

    Raises LoadError once `cancelled` is set.
    """
    task = SupervisedTask(store.supervisor, "a worker's start", RETRY_S)
    while True:
        try:
            store.migrate()
        except Exception as error:
            if cancelled.wait(task.record_failure(error)):
                raise LoadError(
                    f"The worker was stopped while it waited for the job database: {task.problem}"
                ) from error
        else:
            task.record_success()
            return


def _pause_reason(breaker: Breaker) -> str:
    failures = f"after {counted(breaker.runs, 'failure')}"
    if not breaker.is_open:
        return f"trying again in {breaker.retry_in_s:.0f} s, {failures}: {breaker.message}"
    trial = "" if breaker.everywhere else ", except for occasional trials (breaker.trial_s)"
    return f"not trying again {failures} until `sophia reset` or a deploy with a changed configuration{trial}: {breaker.message}"

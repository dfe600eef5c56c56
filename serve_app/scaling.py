"""The autoscaling policy: how many workers a model should have now, and why.

It runs in Serve's controller, so it never blocks there: a thread reads the store once a second, and a call only gives the last
answer. When the store is away the last answer stands.
"""

import logging
import threading
from typing import Any, Final

from serve_app.config import BreakerArgs

logger = logging.getLogger("ray.serve")

READ_EVERY_S: Final = 1.0


class FleetPolicy:
    """As many workers as are configured; none while the crash breaker is open, so that GPU nodes can be given back."""

    def __init__(self, model: str, deployment: str, replicas: int, database_url: str, breaker: dict[str, float]):
        self._model, self._deployment, self._replicas = model, deployment, replicas
        self._database_url, self._breaker = database_url, BreakerArgs.model_validate(breaker)
        self._target = replicas
        self._thread: threading.Thread | None = None

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Serve's question, several times a second; the answer is the target and no state that Serve must keep."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name=f"policy-{self._model}", daemon=True)
            self._thread.start()
        return self._target, {}

    def _read(self) -> None:
        from serve_app.errors import StoreUnavailable
        from serve_app.store import Store  # here: the controller, the dashboard and the CLI import this module, too

        store = Store(self._database_url)
        said = ""
        while True:
            try:
                self._target, reason = self._decide(store.loads.breaker(self._model, self._deployment, self._breaker))
                if reason != said:
                    logger.info("%s: %s workers wanted: %s", self._model, self._target, reason)
                    store.decisions.publish(self._model, self._target, reason)
                    said = reason
            except StoreUnavailable as error:
                logger.warning("%s: still %s workers wanted: %s", self._model, self._target, error)
            threading.Event().wait(READ_EVERY_S)

    def _decide(self, breaker: Any) -> tuple[int, str]:
        if breaker.is_open:
            return 0, f"the crash breaker is open after {breaker.runs} loads that failed with {breaker.code}"
        return self._replicas, f"models.{self._model}.replicas is {self._replicas}"

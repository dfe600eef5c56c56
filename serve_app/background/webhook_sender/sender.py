"""Claims webhook deliveries that are due, makes the attempts, and records their outcomes.

Deliveries are rows of the store, so none is lost when a process dies. Failed attempts are retried until the receiver answers 2xx or
the last retry has failed.
"""

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Final

from serve_app.background.webhook_sender.addresses import Resolve, resolve
from serve_app.background.webhook_sender.attempt import Attempts, Outcome, WebhookForm
from serve_app.background.webhook_sender.network import ReceiverBusy
from serve_app.background.webhook_sender.receivers import Receivers
from serve_app.config import AppArgs
from serve_app.errors import NotFound, StoreUnavailable
from serve_app.jobs import Job
from serve_app.store import Store
from serve_app.store.webhooks import Delivery, DeliveryState
from serve_app.supervision import PeriodicThread

logger = logging.getLogger("ray.serve.sophia")

MAX_ATTEMPTS_AT_ONCE: Final = 8
"""The most attempts in progress in one process."""

_LEASE_S: Final = 180.0
"""Longer than any `timeout_s` plus the system resolver's timeout, which nothing here can shorten."""

_POLL_S: Final = 1.0
_JITTER: Final = 0.25
"""A retry comes up to this part later than configured, so that deliveries that failed together do not retry together."""

_BUSY_S: Final = 1.0
"""Least seconds for which a delivery is postponed when its receiver is busy."""


class Sender:
    """A thread in every API process that sends the deliveries that are due. The store's claims share them among the processes.

    `render` returns the data of an event, in JSON's types: the job as its client sees it. `forms` has, by the family of a job, the
    forms in which the clients of foreign APIs expect webhooks.
    """

    def __init__(
        self,
        store: Store,
        args: AppArgs,
        render: Callable[[Job], dict[str, Any]],
        resolve: Resolve = resolve,
        forms: Mapping[str, WebhookForm] = MappingProxyType({}),
    ) -> None:
        self._store = store
        self._receivers = Receivers(args.webhooks.per_receiver, args.webhooks.per_owner)
        self._attempts = Attempts(args, render, resolve, self._receivers, forms)
        self._slots = threading.Semaphore(MAX_ATTEMPTS_AT_ONCE)
        self._pool = ThreadPoolExecutor(MAX_ATTEMPTS_AT_ONCE, thread_name_prefix="webhook")
        self._job_ended = store.notifications.waiter("ended")
        self._thread = PeriodicThread(store.supervisor, "webhooks", self._step)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the attempts in progress. Each of them takes at most `webhooks.timeout_s`."""
        self._thread.stopping.set()
        self._job_ended.wake()
        self._thread.join()
        self._pool.shutdown()

    def _step(self) -> None:
        """Start one attempt, or wait until a job ends, an attempt ends, or _POLL_S seconds have passed."""
        seen = self._job_ended.count()
        if not self._slots.acquire(timeout=_POLL_S):
            return
        started = False
        try:
            started = self._start_attempt()
        finally:
            if not started:
                self._slots.release()
        if not started:
            self._job_ended.wait(seen, _POLL_S)

    def _start_attempt(self) -> bool:
        """Start an attempt in the pool, which releases its slot. False when no delivery is due."""
        # Read once: a receiver that becomes free between the two claims must not go to an owner whom the first one excluded.
        busy = self._receivers.busy()
        delivery = self._claim(busy, self._receivers.owners()) or self._claim(busy, self._receivers.busy_owners())
        if delivery is None:
            return False
        self._receivers.begin(delivery)
        self._pool.submit(self._deliver, delivery)
        return True

    def _claim(self, busy: Sequence[str], excluded_owners: Sequence[str]) -> Delivery | None:
        return self._store.webhooks.claim(_LEASE_S, busy, excluded_owners)

    def _deliver(self, delivery: Delivery) -> None:
        """Make one attempt and record it. After an error the lease ends and the delivery is due again."""
        try:
            job = self._store.jobs.get(delivery.job)
            self._record(delivery, job, self._attempts.make(delivery, job))
        except ReceiverBusy as busy:
            self._store.webhooks.postpone(delivery, busy.receiver, random.uniform(_BUSY_S, 2 * _BUSY_S))
        except NotFound:
            logger.info("webhook %s: job %s was deleted", delivery.id, delivery.job)
        except StoreUnavailable as error:
            logger.warning("webhook %s will be retried: %s", delivery.id, error)
        except Exception:  # the pool would drop it silently
            logger.exception("webhook %s will be retried", delivery.id)
        finally:
            self._receivers.end(delivery)
            self._slots.release()
            self._job_ended.wake()

    def _record(self, delivery: Delivery, job: Job, outcome: Outcome) -> None:
        retries_s = self._attempts.retries_s(job)
        state = _next_state(delivery, outcome, retries_s)
        recorded = self._store.webhooks.record(
            delivery,
            state,
            status=outcome.status,
            error=outcome.error,
            retry_in_s=_retry_in_s(delivery, outcome, retries_s) if state == "pending" else 0,
        )
        result = outcome.error or state
        logger.info("webhook %s of job %s, attempt %s: %s", delivery.id, delivery.job, delivery.attempts, result)
        if not recorded:
            logger.info("webhook %s: its claim is gone, so this attempt is not recorded", delivery.id)


def _next_state(delivery: Delivery, outcome: Outcome, retries_s: Sequence[float]) -> DeliveryState:
    if outcome.error is None:
        return "delivered"
    is_last = delivery.attempts > len(retries_s)
    return "failed" if outcome.final or is_last else "pending"


def _retry_in_s(delivery: Delivery, outcome: Outcome, retries_s: Sequence[float]) -> float:
    configured_s = retries_s[delivery.attempts - 1] * random.uniform(1, 1 + _JITTER)
    return max(configured_s, outcome.retry_after_s)

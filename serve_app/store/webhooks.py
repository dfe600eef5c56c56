"""Webhook deliveries. The transaction that ends a job creates them, senders claim them with a lease, and each attempt is recorded.

A claim moves `due_at` to the end of its lease, so a delivery whose sender dies becomes due again. Delivery is at least once: if a
sender dies between sending and recording, the delivery is sent again with the same id, so that the receiver can recognise it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import sqlalchemy as sa

from serve_app.errors import QuotaExceeded
from serve_app.jobs import Status, new_id
from serve_app.plurals import counted
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import webhook_deliveries as deliveries

_ROWS_AT_ONCE: Final = 500  # SQLite and PostgreSQL limit the parameters of a statement

DeliveryState = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of one event to one URL. Times are seconds since the epoch on the database's clock.

    `history` has an entry {at, status, error} for each recorded attempt. While it is pending, `due_at` is the time of the next
    attempt. `receiver` is the host name of `url`, or its IP address if an attempt was postponed because that address was busy.
    """

    id: str
    job: str
    event: str
    url: str
    receiver: str
    owner: str
    state: DeliveryState
    attempts: int
    history: tuple[Mapping[str, Any], ...]
    created_at: float
    due_at: float
    claimed_at: float | None = None


class EndedJob(NamedTuple):
    """What a delivery needs to know of a job that ends."""

    id: str
    owner: str
    status: Status
    webhook_url: str | None


def add_webhook_delivery(connection: sa.Connection, ended: Iterable[EndedJob]) -> None:
    """Create a delivery for each job that has a webhook URL. Call it in the transaction that ends the jobs."""
    rows = [_row(job, job.webhook_url) for job in ended if job.webhook_url]
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        connection.execute(deliveries.insert().values(rows[first : first + _ROWS_AT_ONCE]))


def pending(connection: sa.Connection, owner: str) -> int:
    """How many deliveries of an owner's jobs are pending."""
    found = sa.select(sa.func.count()).where(deliveries.c.owner == owner, deliveries.c.state == "pending")
    return connection.execute(found).scalar_one()


def check_pending(connection: sa.Connection, owner: str, at_most: int) -> None:
    """Raise QuotaExceeded when an owner has `at_most` pending deliveries or more."""
    found = pending(connection, owner)
    if found >= at_most:
        raise QuotaExceeded(
            f"You have {counted(found, 'pending webhook')}, and queue.max_owner_webhooks is {at_most}: check that your server "
            "answers them with 2xx, submit without webhook_url, or ask the operator to raise the limit"
        )


def receiver_of(url: str) -> str:
    """The host name of a URL, in lower case and without port or trailing dot."""
    return (urlsplit(url).hostname or "").rstrip(".")


def _row(job: EndedJob, url: str) -> dict[str, Any]:
    return {
        "id": new_id(),
        "job": job.id,
        "event": f"job.{job.status}",
        "url": url,
        "host": receiver_of(url),
        "owner": job.owner,
        "state": "pending",
        "attempts": 0,
        "history": [],
        "created_at": now(),
        "due_at": now(),
    }


class WebhookStore:
    """The table of deliveries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, lease_s: float, busy: Collection[str] = (), busy_owners: Collection[str] = ()) -> Delivery | None:
        """Claim the delivery that has been due longest, skipping the receivers `busy` and the owners `busy_owners`.

        None when no delivery is due.
        """
        due = sa.select(deliveries.c.id).where(
            deliveries.c.state == "pending",
            deliveries.c.due_at <= now(),
            deliveries.c.host.not_in(busy),
            deliveries.c.owner.not_in(busy_owners),
        )
        with self._database.read() as connection:  # usually none is due, and then no write lock is taken
            if connection.execute(due.limit(1)).one_or_none() is None:
                return None
        first = due.order_by(deliveries.c.due_at).limit(1).with_for_update(skip_locked=True).scalar_subquery()
        with self._database.write(durable=False) as connection:
            claimed = connection.execute(
                deliveries.update()
                .where(deliveries.c.id == first)
                .values(attempts=deliveries.c.attempts + 1, due_at=now() + lease_s)
                .returning(deliveries, now().label("claimed_at"))
            ).one_or_none()
        return _delivery(claimed) if claimed else None

    def record(
        self,
        delivery: Delivery,
        state: DeliveryState,
        *,
        status: int | None = None,
        error: str | None = None,
        retry_in_s: float = 0.0,
    ) -> bool:
        """Record the result of the claimed attempt. Returns False and changes nothing when the claim is lost."""
        attempt = {"at": delivery.claimed_at, "status": status, "error": error}
        with self._database.write() as connection:
            written = connection.execute(
                deliveries.update()
                .where(deliveries.c.id == delivery.id, deliveries.c.attempts == delivery.attempts)
                .values(state=state, history=[*delivery.history, attempt], due_at=now() + retry_in_s)
            )
        return written.rowcount == 1

    def postpone(self, delivery: Delivery, receiver: str, seconds: float) -> None:
        """Return a claimed delivery without an attempt, because `receiver` is busy. It is due again in `seconds`."""
        with self._database.write(durable=False) as connection:
            connection.execute(
                deliveries.update()
                .where(deliveries.c.id == delivery.id, deliveries.c.attempts == delivery.attempts)
                .values(host=receiver, attempts=delivery.attempts - 1, due_at=now() + seconds)
            )

    def pending(self, owner: str) -> int:
        """How many deliveries of an owner's jobs are pending."""
        with self._database.read() as connection:
            return pending(connection, owner)

    def latest(self, job: str) -> Delivery | None:
        """The newest delivery of a job; a job that was retried has several."""
        query = sa.select(deliveries).where(deliveries.c.job == job).order_by(deliveries.c.id.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return _delivery(row) if row else None


def _delivery(row: Any) -> Delivery:
    values = dict(row._mapping)
    return Delivery(receiver=values.pop("host"), **values | {"history": tuple(values["history"])})

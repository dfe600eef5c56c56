"""The decisions of each cluster's autoscaling policy, for health reports and for the other clusters on the same queue."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import decisions

LIVING_S: Final = 60.0
"""After this many seconds without a decision, the other clusters take over a cluster's part of the queue."""

_KEPT_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers a model should have in one cluster, and why."""

    target: int
    reason: str
    cluster: str = ""


class DecisionStore:
    """The table of decisions, with one row per model and cluster."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, model: str, target: int, reason: str, cluster: str = "", takes_jobs: bool = True) -> None:
        """Write a cluster's current decision. `takes_jobs`: the cluster can start workers for queued jobs."""
        values = {"target": target, "reason": reason, "decided_at": now(), "takes_jobs": takes_jobs}
        lowered_at = sa.case((decisions.c.target > target, now()), else_=decisions.c.lowered_at)
        ours = decisions.c.model == model, decisions.c.cluster == cluster
        with self._database.write(durable=False) as connection:
            updated = connection.execute(decisions.update().where(*ours).values(**values, lowered_at=lowered_at))
            if updated.rowcount == 0:
                connection.execute(decisions.delete().where(decisions.c.decided_at < now() - _KEPT_S))
                connection.execute(decisions.insert().values(model=model, cluster=cluster, **values))

    def in_force(self, cluster: str = "") -> dict[str, list[Decision]]:
        """By model: the last decision of `cluster`, of any age, then those of the other living clusters."""
        ours = decisions.c.cluster == cluster
        query = (
            sa.select(decisions)
            .where(sa.or_(ours, decisions.c.decided_at > now() - LIVING_S))
            .order_by(sa.case((ours, 0), else_=1), decisions.c.cluster)
        )
        found: dict[str, list[Decision]] = defaultdict(list)
        with self._database.read() as connection:
            for row in connection.execute(query):
                found[row.model].append(Decision(row.target, row.reason, row.cluster))
        return dict(found)

    def takers(self, model: str) -> set[str]:
        """The living clusters that can start workers for a model."""
        query = sa.select(decisions.c.cluster).where(
            decisions.c.model == model, decisions.c.takes_jobs, decisions.c.decided_at > now() - LIVING_S
        )
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

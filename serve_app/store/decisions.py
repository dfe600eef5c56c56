"""What the autoscaling policy wants, for those who ask why."""

from dataclasses import dataclass

import sqlalchemy as sa

from serve_app.store.database import Database, now
from serve_app.store.tables import decisions


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers a model should have, and why."""

    target: int
    reason: str


class DecisionStore:
    """The table of decisions, one a model."""

    def __init__(self, database: Database):
        self._database = database

    def publish(self, model: str, target: int, reason: str) -> None:
        """Write the decision in force."""
        values = {"target": target, "reason": reason, "decided_at": now()}
        lowered_at = sa.case((decisions.c.target > target, now()), else_=decisions.c.lowered_at)
        with self._database.write(durable=False) as connection:
            updated = connection.execute(
                decisions.update().where(decisions.c.model == model).values(**values, lowered_at=lowered_at)
            )
            if updated.rowcount == 0:
                connection.execute(decisions.insert().values(model=model, **values))

    def all(self) -> dict[str, Decision]:
        """The decisions in force, by model."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(decisions)).all()
        return {row.model: Decision(row.target, row.reason) for row in rows}

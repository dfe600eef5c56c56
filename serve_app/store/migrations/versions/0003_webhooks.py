"""Webhook deliveries, leases, and the time at which audio was removed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what webhooks, retention and the janitor keep."""
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("history", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
    )
    _partial("webhook_deliveries_due", "webhook_deliveries", ["due_at"], "state = 'pending'")
    op.create_index("webhook_deliveries_by_job", "webhook_deliveries", ["job", "id"])
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
    op.add_column("jobs", sa.Column("audio_gone_at", sa.Double))
    _partial("jobs_audio", "jobs", ["finished_at"], "state = 'succeeded' and audio_gone_at is null")
    _partial("jobs_ended", "jobs", ["finished_at"], "finished_at is not null")


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)

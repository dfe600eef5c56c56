"""Plans of songs, and jobs that wait for theirs."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the tables, the column and the indexes."""
    op.add_column("jobs", sa.Column("unplanned", sa.Boolean))
    claimable: list[str | sa.TextClause] = ["model", "rank", "owner", sa.text("priority DESC"), "created_at", "id"]
    _index("jobs_claimable", "jobs", claimable, "state = 'queued' and unplanned is null")
    op.create_table(
        "plans",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), unique=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("rank", sa.SmallInteger, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("audio_seconds", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("deadline_at", sa.Double),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Double),
        sa.Column("worker", sa.Text),
        sa.Column("gpu_s", sa.Double, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("codes", sa.JSON),
        sa.Column("error", sa.JSON),
    )
    waiting: list[str | sa.TextClause] = ["model", "rank", "owner", sa.text("priority DESC"), "created_at", "id"]
    _index("plans_waiting", "plans", waiting, "state = 'waiting'")
    _index("plans_held", "plans", ["lease_until"], "state = 'planning'")
    op.create_index("plans_measured", "plans", ["model", "finished_at"])
    _index("plans_without_songs", "plans", ["deadline_at"], "job is null")
    op.create_table(
        "planning_turns",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("rank", sa.SmallInteger, primary_key=True),
        sa.Column("turn", sa.Double, nullable=False),
        sa.Column("served", sa.Double, nullable=False),
    )


def _index(name: str, table: str, columns: list[str | sa.TextClause], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)

"""Jobs, workers and API keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("audio_seconds", sa.Double, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("fingerprint", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("deadline_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Double),
        sa.Column("worker", sa.Text),
        sa.Column("progress", sa.JSON),
        sa.Column("warnings", sa.JSON),
        sa.Column("audio", sa.JSON),
        sa.Column("timing", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("version", sa.Integer, nullable=False),
    )
    _partial("jobs_queue", ["model", sa.text("priority DESC"), "created_at", "id"], "state = 'queued'")
    _partial("jobs_leases", ["lease_until"], "state = 'running'")
    _partial("jobs_deadlines", ["deadline_at"], "state in ('queued', 'running')")
    _partial("jobs_measured", ["model", "finished_at"], "state = 'succeeded'")
    _partial("jobs_idempotency", ["owner", "idempotency_key"], "idempotency_key is not null", unique=True)
    op.create_index("jobs_by_owner", "jobs", ["owner", "id"])
    op.create_index("jobs_by_state", "jobs", ["state"])
    op.create_table(
        "workers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("phase_since", sa.Double, nullable=False),
        sa.Column("progress", sa.Double),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("facts", sa.JSON),
        sa.Column("job", sa.Text),
        sa.Column("seen_at", sa.Double, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
    )


def _partial(name: str, columns: list[str | sa.TextClause], where: str, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, "jobs", columns, unique=unique, sqlite_where=condition, postgresql_where=condition)

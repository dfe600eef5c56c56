"""Waiting calls whose callers have left, and jobs that clients of other services submitted."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add the columns and indexes."""
    op.add_column("jobs", sa.Column("abandoned_at", sa.Double))
    op.add_column("jobs", sa.Column("family", sa.Text))
    op.add_column("jobs", sa.Column("streamed_at", sa.Double))
    left = sa.text("abandoned_at is not null")
    op.create_index("jobs_left", "jobs", ["owner", "fingerprint"], sqlite_where=left, postgresql_where=left)
    calls = sa.text("finished_at is null and fingerprint is not null")
    op.create_index("jobs_calls", "jobs", ["owner", "fingerprint"], sqlite_where=calls, postgresql_where=calls)

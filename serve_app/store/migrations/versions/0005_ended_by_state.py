"""Index the state of ended jobs only, so that a claim does not write into an index as large as the table."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Replace the index."""
    ended = sa.text("finished_at is not null")
    op.create_index("jobs_ended_by_state", "jobs", ["state", "id"], sqlite_where=ended, postgresql_where=ended)
    op.drop_index("jobs_by_state", "jobs")

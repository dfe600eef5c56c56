"""Columns and tables for recovery and scaling: processes, load attempts, turns and policy decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns and tables."""
    op.add_column("jobs", sa.Column("turn", sa.Double, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("gpu_s", sa.Double, nullable=False, server_default="0"))
    op.drop_index("jobs_queue", "jobs")
    condition = sa.text("state = 'queued'")
    op.create_index(
        "jobs_queue",
        "jobs",
        ["model", sa.text("priority DESC"), "turn", "created_at", "id"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
    op.add_column("workers", sa.Column("host", sa.Text, nullable=False, server_default=""))
    op.add_column("workers", sa.Column("born", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("workers", sa.Column("moved_at", sa.Double, nullable=False, server_default="0"))
    op.create_table(
        "loads",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("deployment", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("born", sa.BigInteger, nullable=False),
        sa.Column("began_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("code", sa.Text),
        sa.Column("message", sa.Text),
        sa.Column("phase", sa.Text),
    )
    op.create_index("loads_by_model", "loads", ["model", "deployment", "began_at"])
    op.create_table(
        "decisions",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("target", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("decided_at", sa.Double, nullable=False),
    )

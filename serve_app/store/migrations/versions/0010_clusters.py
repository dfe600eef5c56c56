"""Several clusters on one queue: decisions, workers and loads name their cluster."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the columns, and recreate the table of decisions, which every policy refills within a second."""
    for table in ("workers", "loads"):
        op.add_column(table, sa.Column("cluster", sa.Text, nullable=False, server_default=""))
    op.drop_table("decisions")
    op.create_table(
        "decisions",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("cluster", sa.Text, primary_key=True, server_default=""),
        sa.Column("target", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("decided_at", sa.Double, nullable=False),
        sa.Column("lowered_at", sa.Double, nullable=False, server_default="0"),
        sa.Column("takes_jobs", sa.Boolean, nullable=False, server_default=sa.true()),
    )

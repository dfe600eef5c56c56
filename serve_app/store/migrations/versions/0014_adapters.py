"""Adapters that were added while the service runs."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "adapters",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("added_at", sa.Double, nullable=False),
    )

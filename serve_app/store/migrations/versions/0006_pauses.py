"""Pauses of models, and the time at which a target was lowered, to tell a stopped load from a crashed one."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table and the column."""
    op.add_column("decisions", sa.Column("lowered_at", sa.Double, nullable=False, server_default="0"))
    op.create_table(
        "pauses",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
    )

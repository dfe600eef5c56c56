"""What the clients of foreign APIs have set for their later calls."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "client_settings",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("family", sa.Text, primary_key=True),
        sa.Column("settings", sa.JSON, nullable=False),
    )

"""The janitor's note of files that it leaves for later rounds."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column."""
    op.add_column("installation", sa.Column("held_back", sa.Text, nullable=False, server_default=""))

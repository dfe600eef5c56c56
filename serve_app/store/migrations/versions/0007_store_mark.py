"""An id for the database, with which it marks its audio store."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the table, with its one row."""
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("refusal", sa.Text, nullable=False),
    )
    op.bulk_insert(installation, [{"id": uuid4().hex, "refusal": ""}])

"""The owner of each webhook delivery, so that no owner can occupy every sender."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column, filled from the jobs. Earlier versions, which still run beside, leave it empty."""
    op.add_column("webhook_deliveries", sa.Column("owner", sa.Text, nullable=False, server_default=""))
    op.execute(
        "update webhook_deliveries set owner = coalesce((select jobs.owner from jobs where jobs.id = webhook_deliveries.job), '') "
        "where state = 'pending'"
    )

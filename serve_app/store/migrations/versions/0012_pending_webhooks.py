"""An index for counting an owner's pending webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the index."""
    pending = sa.text("state = 'pending'")
    op.create_index(
        "webhook_deliveries_by_owner", "webhook_deliveries", ["owner"], sqlite_where=pending, postgresql_where=pending
    )

"""An owner's inputs are listed by age."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the index."""
    op.create_index("inputs_by_age", "inputs", ["owner", "created_at", "sha256"])

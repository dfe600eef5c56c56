"""Device time by worker and by API key."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the accounts, an hour a row."""
    op.create_table(
        "device_hours",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("worker", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("price_per_hour", sa.Double, nullable=False),
        sa.Column("loading_s", sa.Double, nullable=False),
        sa.Column("idle_s", sa.Double, nullable=False),
        sa.Column("generating_s", sa.Double, nullable=False),
    )
    op.create_table(
        "owner_hours",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("songs", sa.BigInteger, nullable=False),
        sa.Column("audio_s", sa.Double, nullable=False),
        sa.Column("gpu_s", sa.Double, nullable=False),
        sa.Column("wasted_s", sa.Double, nullable=False),
    )

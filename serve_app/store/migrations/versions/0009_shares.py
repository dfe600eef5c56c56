"""Each owner's share of a model's queue, and keys that outrank others."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the table, filled from what is queued, so that owners keep their order; and the indexes of a long queue."""
    op.add_column("jobs", sa.Column("rank", sa.SmallInteger, nullable=False, server_default="5"))
    op.add_column("api_keys", sa.Column("outranks", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "shares",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("rank", sa.SmallInteger, primary_key=True),
        sa.Column("jobs", sa.BigInteger, nullable=False),
        sa.Column("audio_s", sa.Double, nullable=False),
        sa.Column("turn", sa.Double, nullable=False),
        sa.Column("served", sa.Double, nullable=False),
    )
    op.create_index("shares_clock", "shares", ["model", "rank", "served"])
    some = sa.text("jobs > 0")
    op.create_index("shares_queued", "shares", ["model", "rank", "turn"], sqlite_where=some, postgresql_where=some)
    op.create_index("shares_by_owner", "shares", ["owner"])
    # A job that ends without a worker was still queued. `Moves` relies on this to know whether to take the job off its owner's
    # share.
    op.execute("UPDATE jobs SET worker = NULL WHERE state = 'queued'")
    op.execute(
        "INSERT INTO shares (model, owner, rank, jobs, audio_s, turn, served) "
        "SELECT model, owner, 5, count(*), sum(audio_seconds), min(turn), "
        "(SELECT min(turn) FROM jobs AS first WHERE first.state = 'queued' AND first.model = jobs.model) "
        "FROM jobs WHERE state = 'queued' GROUP BY model, owner"
    )
    op.drop_index("jobs_queue", "jobs")
    queue: list[str | sa.TextClause] = [
        "model",
        "rank",
        "owner",
        sa.text("priority DESC"),
        "created_at",
        "id",
        "audio_seconds",
    ]
    _partial("jobs_queue", queue, "state = 'queued'")
    _partial("jobs_waiting", ["model", "created_at"], "state = 'queued'")
    _partial("jobs_live", ["state", "id"], "finished_at is null")
    _partial("jobs_live_by_owner", ["owner", "state", "id"], "finished_at is null")


def _partial(name: str, columns: list[str | sa.TextClause], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, "jobs", columns, sqlite_where=condition, postgresql_where=condition)

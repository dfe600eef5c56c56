"""The tables. Times are seconds since the epoch, by the database's clock."""

from typing import Final

import sqlalchemy as sa

from serve_app.jobs import Status

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),  # the API key's name; empty when authentication is off
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("turn", sa.Double, nullable=False, server_default="0"),  # for versions before 0009, during a rollout
    sa.Column("rank", sa.SmallInteger, nullable=False, server_default="5"),  # among owners; see store/shares.py
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("audio_seconds", sa.Double, nullable=False),  # duration x songs that the model plays, for estimates
    sa.Column("idempotency_key", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("deadline_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("lease_until", sa.Double),
    sa.Column("worker", sa.Text),
    sa.Column("gpu_s", sa.Double, nullable=False, server_default="0"),  # of all attempts that reported it
    sa.Column("progress", sa.JSON(none_as_null=True)),
    sa.Column("warnings", sa.JSON(none_as_null=True)),
    sa.Column("audio", sa.JSON(none_as_null=True)),
    sa.Column("timing", sa.JSON(none_as_null=True)),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("audio_gone_at", sa.Double),  # when its files were removed, or found to be missing
    sa.Column("abandoned_at", sa.Double),  # when its waiting caller left; null again once that has been dealt with
    sa.Column("family", sa.Text),  # the foreign API by which it was submitted; null for the native one
    sa.Column(
        "streamed_at", sa.Double
    ),  # when a foreign API's stream, which delivers each song once, delivered its songs
    sa.Column("unplanned", sa.Boolean),  # true until the job has its plan; null if it has it or needs none
)


def _partial(name: str, *columns: str | sa.UnaryExpression[int], where: str, unique: bool = False) -> None:
    """Define a partial index. It covers few rows, so that a million finished jobs do not slow down a claim."""
    condition = sa.text(where)
    sa.Index(
        name,
        *(jobs.c[column] if isinstance(column, str) else column for column in columns),
        unique=unique,
        sqlite_where=condition,
        postgresql_where=condition,
    )


_partial(  # includes audio_seconds, so that lengths are summed from the index alone
    "jobs_queue",
    *("model", "rank", "owner", jobs.c.priority.desc(), "created_at", "id", "audio_seconds"),
    where="state = 'queued'",
)
_partial(  # of the queued jobs, those that a worker may claim
    "jobs_claimable",
    *("model", "rank", "owner", jobs.c.priority.desc(), "created_at", "id"),
    where="state = 'queued' and unplanned is null",
)
_partial("jobs_waiting", "model", "created_at", where="state = 'queued'")
_partial("jobs_live", "state", "id", where="finished_at is null")
_partial("jobs_live_by_owner", "owner", "state", "id", where="finished_at is null")
_partial("jobs_leases", "lease_until", where="state = 'running'")
_partial("jobs_deadlines", "deadline_at", where="state in ('queued', 'running')")
_partial("jobs_measured", "model", "finished_at", where="state = 'succeeded'")
_partial("jobs_audio", "finished_at", where="state = 'succeeded' and audio_gone_at is null")
_partial("jobs_ended", "finished_at", where="finished_at is not null")
_partial("jobs_ended_by_state", "state", "id", where="finished_at is not null")
_partial("jobs_idempotency", "owner", "idempotency_key", where="idempotency_key is not null", unique=True)
_partial("jobs_left", "owner", "fingerprint", where="abandoned_at is not null")
_partial("jobs_calls", "owner", "fingerprint", where="finished_at is null and fingerprint is not null")
sa.Index("jobs_by_owner", jobs.c.owner, jobs.c.id)


def state_is(*states: Status) -> sa.ColumnElement[bool]:
    """The condition that a job is in one of the states.

    The states are literals in the statement. With parameters, a planner could not use the partial indexes and would read a million
    finished jobs.
    """
    if len(states) == 1:
        return jobs.c.state == sa.literal(states[0].value, literal_execute=True)
    names = [state.value for state in states]
    return jobs.c.state.in_(sa.bindparam(None, names, expanding=True, literal_execute=True))


shares = sa.Table(  # how much each owner has queued, and the order in which owners are served
    "shares",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("rank", sa.SmallInteger, primary_key=True),
    sa.Column("jobs", sa.BigInteger, nullable=False),  # queued
    sa.Column("audio_s", sa.Double, nullable=False),  # of the queued ones
    sa.Column("turn", sa.Double, nullable=False),  # where the next one starts, in seconds of audio
    sa.Column("served", sa.Double, nullable=False),  # the largest turn that was served
)
sa.Index("shares_clock", shares.c.model, shares.c.rank, shares.c.served)
sa.Index(
    "shares_queued",
    *(shares.c.model, shares.c.rank, shares.c.turn),
    sqlite_where=sa.text("jobs > 0"),
    postgresql_where=sa.text("jobs > 0"),
)
sa.Index("shares_by_owner", shares.c.owner)

inputs = sa.Table(  # uploaded recordings, by owner and content
    "inputs",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, primary_key=True),  # of the uploaded bytes
    sa.Column("upload", sa.Text, nullable=False, unique=True),  # the folder of its file
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("sample_rate", sa.Integer, nullable=False),
    sa.Column("channels", sa.Integer, nullable=False),
    sa.Column("silent", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)
sa.Index("inputs_expiry", inputs.c.expires_at)
sa.Index("inputs_by_age", inputs.c.owner, inputs.c.created_at, inputs.c.sha256)

voices = sa.Table(  # names that owners have given to inputs
    "voices",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, nullable=False),  # of the input
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("changed_at", sa.Double, nullable=False),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),  # the host name; the address, if an attempt was postponed because of it
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("history", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("due_at", sa.Double, nullable=False),  # the next attempt, or the end of the sender's lease
)
sa.Index(
    "webhook_deliveries_due",
    webhook_deliveries.c.due_at,
    sqlite_where=sa.text("state = 'pending'"),
    postgresql_where=sa.text("state = 'pending'"),
)
sa.Index(
    "webhook_deliveries_by_owner",
    webhook_deliveries.c.owner,
    sqlite_where=sa.text("state = 'pending'"),
    postgresql_where=sa.text("state = 'pending'"),
)
sa.Index("webhook_deliveries_by_job", webhook_deliveries.c.job, webhook_deliveries.c.id)

plans = sa.Table(  # what planners have to do and have done; see store/plans.py
    "plans",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column(
        "job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), unique=True
    ),  # null for a plan without songs
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("rank", sa.SmallInteger, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("audio_seconds", sa.Double, nullable=False),  # of the songs to plan, for estimates
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("deadline_at", sa.Double),  # of a plan without songs; the others have their job's
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("lease_until", sa.Double),
    sa.Column("worker", sa.Text),
    sa.Column("gpu_s", sa.Double, nullable=False),  # of all attempts that reported it
    sa.Column("result", sa.JSON(none_as_null=True)),  # but its codes
    sa.Column("codes", sa.JSON(none_as_null=True)),  # apart, since a job's view needs the rest and not these 200 kB
    sa.Column("error", sa.JSON(none_as_null=True)),
)
_WAITING_PLAN: Final = sa.text("state = 'waiting'")
_HELD_PLAN: Final = sa.text("state = 'planning'")
_PLAN_WITHOUT_SONGS: Final = sa.text("job is null")
sa.Index(
    "plans_waiting",
    *(plans.c.model, plans.c.rank, plans.c.owner, plans.c.priority.desc(), plans.c.created_at, plans.c.id),
    sqlite_where=_WAITING_PLAN,
    postgresql_where=_WAITING_PLAN,
)
sa.Index("plans_held", plans.c.lease_until, sqlite_where=_HELD_PLAN, postgresql_where=_HELD_PLAN)
sa.Index("plans_measured", plans.c.model, plans.c.finished_at)
sa.Index(
    "plans_without_songs", plans.c.deadline_at, sqlite_where=_PLAN_WITHOUT_SONGS, postgresql_where=_PLAN_WITHOUT_SONGS
)

planning_turns = sa.Table(  # the order in which planners serve the owners, as in `shares`
    "planning_turns",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("rank", sa.SmallInteger, primary_key=True),
    sa.Column("turn", sa.Double, nullable=False),  # where the owner's next plan starts, in seconds of audio
    sa.Column("served", sa.Double, nullable=False),  # the largest turn that was served
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("phase_since", sa.Double, nullable=False),
    sa.Column("progress", sa.Double),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("facts", sa.JSON(none_as_null=True)),  # what the engine reports about its checkpoint
    sa.Column("job", sa.Text),
    sa.Column("seen_at", sa.Double, nullable=False),
    sa.Column("host", sa.Text, nullable=False, server_default=""),  # with pid and born, identifies the process
    sa.Column("born", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("moved_at", sa.Double, nullable=False, server_default="0"),  # when phase, progress or detail last changed
    sa.Column("cluster", sa.Text, nullable=False, server_default=""),  # its Ray cluster; empty when unknown
)

loads = sa.Table(  # one row per attempt to load a model; source of the breaker and of the measured start-up time
    "loads",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("deployment", sa.Text, nullable=False),  # a new build of the application starts without failures
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("born", sa.BigInteger, nullable=False),
    sa.Column("began_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Column("code", sa.Text),  # of the failure; null during the load and after a success
    sa.Column("message", sa.Text),
    sa.Column("phase", sa.Text),
    sa.Column("cluster", sa.Text, nullable=False, server_default=""),
)
sa.Index("loads_by_model", loads.c.model, loads.c.deployment, loads.c.began_at)

decisions = sa.Table(  # the target of each cluster's autoscaling policy, and the reason
    "decisions",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("cluster", sa.Text, primary_key=True, server_default=""),
    sa.Column("target", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("decided_at", sa.Double, nullable=False),
    sa.Column("lowered_at", sa.Double, nullable=False, server_default="0"),  # when the target was last lowered
    sa.Column("takes_jobs", sa.Boolean, nullable=False, server_default=sa.true()),  # whether it can start workers
)

pauses = sa.Table(  # the models that an operator has paused
    "pauses",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
)

adapters = sa.Table(  # adapters that an operator has added to those of the configuration
    "adapters",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("added_at", sa.Double, nullable=False),
)

client_settings = sa.Table(  # what clients of foreign APIs have set for their later calls
    "client_settings",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("family", sa.Text, primary_key=True),
    sa.Column("settings", sa.JSON, nullable=False),
)

installation = sa.Table(  # one row, which identifies this database
    "installation",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # also the mark in its audio store
    sa.Column("refusal", sa.Text, nullable=False),  # why the janitor refuses to delete; empty when it does not
    sa.Column("held_back", sa.Text, nullable=False, server_default=""),  # what it leaves for later rounds
)

device_hours = sa.Table(  # device time by use; kept after the worker has ended
    "device_hours",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True),  # since the epoch
    sa.Column("worker", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("price_per_hour", sa.Double, nullable=False),
    sa.Column("loading_s", sa.Double, nullable=False),
    sa.Column("idle_s", sa.Double, nullable=False),
    sa.Column("generating_s", sa.Double, nullable=False),
)

owner_hours = sa.Table(  # songs generated for each API key; kept after the jobs are deleted
    "owner_hours",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("songs", sa.BigInteger, nullable=False),
    sa.Column("audio_s", sa.Double, nullable=False),
    sa.Column("gpu_s", sa.Double, nullable=False),  # of successful attempts
    sa.Column("wasted_s", sa.Double, nullable=False),  # device time of unsuccessful attempts
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column(
        "outranks", sa.Boolean, nullable=False, server_default=sa.false()
    ),  # its priorities count among all keys' jobs
)

"""No query of the queue scans the jobs table, so a million finished jobs cost nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from serve_app.config import BreakerArgs, ScalingArgs
from serve_app.errors import GenerationError
from serve_app.jobs import Job
from serve_app.scaling.observation import StoreFleet
from serve_app.store import Beat, Store
from tests.support.migrated import migrate
from tests.support.queue import claim, claim_plan, finish, submit, submit_unplanned


def _page(*states: str, owner: str | None = None) -> Callable[[Store, Job], Any]:
    return lambda store, _: store.jobs.page(states=states, owner=owner)


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda store, _: submit(store), id="submit"),
        pytest.param(lambda store, _: store.claims.take("w", "m", 10), id="claim"),
        pytest.param(lambda store, job: store.claims.heartbeat([Beat(job.id, 1, "w", {})], 10), id="heartbeat"),
        pytest.param(lambda store, job: store.claims.lost([Beat(job.id, 1, "w")]), id="lost"),
        pytest.param(lambda store, _: submit_unplanned(store), id="submit unplanned"),
        pytest.param(lambda store, _: store.plans.take("p", "m", 10), id="claim a plan"),
        pytest.param(
            lambda store, _: store.plans.publish(store.plans.take("p", "m", 10), {}, gpu_s=1), id="publish a plan"
        ),
        pytest.param(
            lambda store, _: store.plans.fail(store.plans.take("p", "m", 10), GenerationError()), id="fail a plan"
        ),
        pytest.param(lambda store, _: store.plans.enforce(0), id="sweep plans"),
        pytest.param(lambda store, job: finish(store, job), id="finish"),
        pytest.param(lambda store, job: store.jobs.cancel(job.id), id="cancel"),
        pytest.param(lambda store, _: store.claims.release("w"), id="abandon"),
        pytest.param(lambda store, _: store.time_limits.enforce(0), id="sweep"),
        pytest.param(lambda store, job: store.waiting_calls.leave(job.id), id="leave"),
        pytest.param(lambda store, _: store.waiting_calls.take_over("", "f", 10), id="take over"),
        pytest.param(lambda store, _: store.waiting_calls.is_waited_for("", "f"), id="waited for"),
        pytest.param(lambda store, _: store.waiting_calls.cancel_left(10), id="cancel left"),
        pytest.param(lambda store, _: store.backlog.places(store.jobs.page(states=["queued"])), id="places"),
        pytest.param(lambda store, _: store.backlog.oldest_wait_s(), id="oldest wait"),
        pytest.param(lambda store, _: store.backlog.counts(), id="counts"),
        pytest.param(lambda store, _: store.backlog.speed("m"), id="speed"),
        pytest.param(
            lambda store, _: StoreFleet(store, "m", "d", ScalingArgs(), BreakerArgs()).observe(), id="observe"
        ),
        pytest.param(_page("queued"), id="queued jobs"),
        pytest.param(_page("failed"), id="failed jobs"),
        pytest.param(_page("queued", "running", owner="me"), id="an owner's queued jobs"),
        pytest.param(lambda store, job: store.plans.of_jobs([job.id]), id="plans of jobs"),
        pytest.param(lambda store, _: store.plans.audio_to_make("m", 500), id="audio to plan"),
        pytest.param(lambda store, _: store.plans.speed("m"), id="speed of planning"),
        pytest.param(lambda store, job: store.plans.ended([job.id]), id="ended plans"),
        pytest.param(lambda store, _: store.retention.ended_long_ago(60, 100), id="ended long ago"),
        pytest.param(lambda store, _: store.retention.with_old_audio(60, 100), id="old audio"),
    ],
)
def test_a_query_finds_its_jobs_by_an_index(tmp_path: Path, ask: Callable[[Store, Job], Any]) -> None:
    """SQLite's plan of every statement uses an index."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    migrate(store)
    submit(store)
    submit(store)
    submit_unplanned(store)
    job = claim(store)
    plans = _plans_of(store)
    ask(store, job)
    store.close()
    assert plans
    tables = ("jobs", "plans")
    whole = [f"SCAN {name}{index}" for name in tables for index in ("", f" USING INDEX sqlite_autoindex_{name}_1")]
    assert [plan for plan in plans if plan in whole] == []


def test_a_claim_reads_only_what_can_be_claimed(tmp_path: Path) -> None:
    """Jobs that wait for a planner cost a worker's claim nothing, and finished plans cost a planner's claim nothing."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    migrate(store)
    submit_unplanned(store)
    submit(store)
    plans = _plans_of(store)
    claim(store)
    claim_plan(store)
    store.close()
    read = {index for plan in plans for index in _INDEXES if index in plan}
    assert read == {"jobs_claimable", "plans_waiting"}


_INDEXES = ("jobs_claimable", "jobs_queue", "jobs_waiting", "plans_waiting", "plans_measured")


def test_an_owners_ended_jobs_are_found_among_the_owners(tmp_path: Path) -> None:
    """An owner's finished jobs are found by index, without reading other owners' jobs."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    migrate(store)
    plans = _plans_of(store)
    store.jobs.page(states=["succeeded"], owner="me")
    store.close()
    assert plans == ["SEARCH jobs USING INDEX jobs_by_owner (owner=?)"]


def _plans_of(store: Store) -> list[str]:
    """SQLite's plans of all statements about jobs and plans from now on."""
    plans: list[str] = []

    @sa.event.listens_for(store.database.engine, "before_cursor_execute")
    def explain(connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if ("jobs" in statement or "plans" in statement) and statement.startswith(
            ("SELECT", "UPDATE", "DELETE", "INSERT")
        ):
            plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())

    return plans

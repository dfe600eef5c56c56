"""Several clusters on one queue: each scales for its own share, and takes over the share of a cluster that stops."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from serve_app.app import _autoscaling
from serve_app.config import AppArgs, BreakerArgs, ScalingArgs
from serve_app.jobs import WorkerPhase
from serve_app.processes import Process
from serve_app.ray_adapters.cluster import Node
from serve_app.scaling import observation as fleets
from serve_app.scaling.observation import StoreFleet
from serve_app.scaling.policy import Decision, decide
from serve_app.store import Store, WorkerRow
from serve_app.store.tables import decisions, jobs, loads
from tests.support.helpers import eventually
from tests.support.queue import claim, submit
from tests.support.running import running, simulated

BOUNDS = ScalingArgs(min_workers=0, max_workers=20, target_wait_s=60, work_prior=1)


@pytest.fixture
def one(store: Store) -> StoreFleet:
    """Cluster one's view of model m."""
    return StoreFleet(store, "m", "d1", BOUNDS, BreakerArgs(open_after=2), cluster="one")


@pytest.fixture
def two(store: Store) -> StoreFleet:
    """Cluster two's view of model m."""
    return StoreFleet(store, "m", "d2", BOUNDS, BreakerArgs(open_after=2), cluster="two")


def live(*clusters: StoreFleet) -> None:
    for cluster in clusters:
        cluster.observe()
        cluster.publish(0, "no work")


def report(store: Store, name: str, cluster: str, phase: str = "idle") -> None:
    row = WorkerRow(
        id=name, model="m", node="n", process=Process.this(), device="cpu", phase=WorkerPhase(phase), cluster=cluster
    )
    store.workers.report(row)


def make_old(store: Store, table: sa.Table, column: str, seconds: float) -> None:
    with store.database.write() as connection:
        connection.execute(table.update().values({column: table.c[column] - seconds}))


@pytest.mark.fault("A5")
def test_a_cluster_does_not_scale_for_anothers_running_jobs(store: Store, one: StoreFleet, two: StoreFleet) -> None:
    """While two jobs run in cluster one and none is queued, cluster one keeps its two workers and cluster two has the target 0."""
    for worker in ("w1", "w2"):
        report(store, worker, "one")
        submit(store, duration=600)
        claim(store, worker)

    here = decide(one.observe(), BOUNDS, Decision(2, "", 2))
    there = decide(two.observe(), BOUNDS, Decision(0, ""))

    assert (here.target, there.target) == (2, 0)
    assert (one.observe().ready_now, two.observe().ready_now) == (2, 0)


@pytest.mark.fault("A5")
def test_what_waits_is_shared(store: Store, one: StoreFleet, two: StoreFleet) -> None:
    """Of 21 queued songs, one cluster scales for 11 and the other for 10, and each decision's reason mentions its share."""
    live(one, two)
    for _ in range(21):
        submit(store, duration=60)

    seen = one.observe(), two.observe()

    assert [each.queued_jobs for each in seen] == [11, 10]
    assert [each.queued_work_s for each in seen] == pytest.approx([660, 600])
    assert [each.arrivals[0] for each in seen] == [(11, 660.0), (10, 600.0)]
    assert [decide(each, BOUNDS, Decision(0, "")).target for each in seen] == [11, 10]
    assert "this cluster's part among 2" in decide(seen[0], BOUNDS, Decision(0, "")).reason


@pytest.mark.fault("A5")
def test_each_cluster_has_a_decision_of_its_own(store: Store, one: StoreFleet, two: StoreFleet) -> None:
    """A cluster's decision does not replace another's, and only its own lower target explains the end of its workers."""
    one.publish(3, "much to do")
    two.publish(1, "little to do")
    load = store.load_attempts.begin("m", "d1", Process("another", 1, 1), cluster="one")
    two.publish(0, "nothing to do")

    found = store.decisions.in_force("two")["m"]

    assert [(each.cluster, each.target) for each in found] == [("two", 0), ("one", 3)]
    with store.database.read() as connection:
        row = connection.execute(sa.select(loads).where(loads.c.id == load)).one()
        assert not store.load_attempts._was_scaled_down(connection, row)
    one.publish(0, "nothing to do")
    with store.database.read() as connection:
        assert store.load_attempts._was_scaled_down(connection, row)


@pytest.mark.fault("A5")
def test_a_cluster_that_stops_deciding_leaves_its_share(store: Store, one: StoreFleet, two: StoreFleet) -> None:
    """A minute after a cluster's last decision, the other cluster takes all queued jobs."""
    live(one, two)
    for _ in range(4):
        submit(store)
    assert one.observe().queued_jobs == 2

    make_old(store, decisions, "decided_at", 61)
    one.publish(1, "alive")

    assert one.observe().queued_jobs == 4
    assert [each.cluster for each in store.decisions.in_force("one")["m"]] == ["one"]


@pytest.mark.fault("A5")
def test_a_cluster_that_cannot_start_workers_has_no_share(store: Store, one: StoreFleet, two: StoreFleet) -> None:
    """While a cluster's breaker is open for every host, the other cluster takes all queued jobs."""
    for _ in range(2):
        load = store.load_attempts.begin("m", "d2", Process.this())
        store.load_attempts.failed(load, "unknown_repository", "There is none.", "download")
    live(one, two)
    for _ in range(4):
        submit(store)

    assert one.observe().queued_jobs == 4
    assert two.observe().breaker is not None


@pytest.mark.fault("A5")
def test_what_has_waited_for_too_long_is_everybodys(store: Store, one: StoreFleet, two: StoreFleet) -> None:
    """After `target_wait_s` and a start-up time, both clusters scale for a job that has not started."""
    live(one, two)
    submit(store)
    assert (one.observe().queued_jobs, two.observe().queued_jobs) == (1, 0)

    make_old(store, jobs, "created_at", BOUNDS.target_wait_s + BOUNDS.startup_prior_s + 1)

    assert (one.observe().queued_jobs, two.observe().queued_jobs) == (1, 1)


@pytest.mark.fault("A5")
def test_a_decision_that_stays_is_published_again(
    store: Store, one: StoreFleet, two: StoreFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster publishes an unchanged decision again, so that other clusters do not regard it as gone."""
    monkeypatch.setattr(fleets, "REPEAT_S", 0.05)
    live(one, two)
    make_old(store, decisions, "decided_at", 61)
    assert store.decisions.takers("m") == set()

    def both_spoke() -> bool:
        live(one, two)
        return store.decisions.takers("m") == {"one", "two"}

    eventually(both_spoke)


@pytest.mark.fault("A5", "A6")
def test_health_shows_every_cluster(tmp_path: Path) -> None:
    """/v1/health sums the targets of all clusters and lists each, and a job of a model that only another cluster serves says so."""
    models = {"m": simulated()}
    with running(tmp_path, models, workers=0, cluster=list[Node], cluster_name="here") as service:
        job = service.submit()["id"]
        report(service.store, "w", "there", "load")
        service.store.decisions.publish("m", 1, "work", "here")
        service.store.decisions.publish("m", 3, "much work", "there")

        scale = service.client.get("/v1/health").json()["scale"]["m"]

        assert (scale["wanted"], scale["pending"], scale["starting"], scale["reason"]) == (4, 3, 1, "work")
        assert scale["clusters"] == [
            {"name": "here", "ready": 0, "wanted": 1, "pending": 1, "reason": "work"},
            {"name": "there", "ready": 0, "wanted": 3, "pending": 2, "reason": "much work"},
        ]
        workers = service.client.get("/v1/health").json()["workers"]
        assert [worker["cluster"] for worker in workers] == ["there"]
    with running(tmp_path, models={"other": simulated()}, workers=0, cluster_name="here") as service:
        shown = service.job(job)["waiting_for"]
        assert shown == "another cluster serves this model and has no worker for it yet: much work"
        make_old(service.store, decisions, "decided_at", 61)
        assert "no other cluster on this queue serves it" in service.job(job)["waiting_for"]


def test_a_clusters_name_reaches_its_policy(tmp_path: Path) -> None:
    """The autoscaling policy in Serve's controller gets the configured `cluster_name`."""
    settings = {"data_dir": tmp_path, "cluster_name": "on-premises", "models": {"m": {"device": "cpu"}}}
    args = AppArgs.model_validate(settings)

    policy = _autoscaling("m", args, "d")["policy"]

    assert policy["policy_kwargs"]["source_kwargs"]["cluster"] == "on-premises"

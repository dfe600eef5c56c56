"""What a failed load stops, and what it must leave alone; and an operator's pause."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import AppArgs, BreakerArgs, ScalingArgs
from serve_app.errors import StoreUnavailable
from serve_app.jobs import WorkerPhase
from serve_app.ops import cli
from serve_app.processes import Process
from serve_app.scaling.observation import StoreFleet
from serve_app.scaling.policy import WINDOWS, Decision, Observation, decide
from serve_app.store import Store, WorkerRow
from serve_app.store.tables import loads
from serve_app.worker.startup import Startup
from tests.support.helpers import eventually
from tests.support.running import running

BREAKER = BreakerArgs(open_after=3, backoff_s=10, max_backoff_s=30)
BOUNDS = ScalingArgs(min_workers=2, max_workers=4)


@pytest.fixture
def fleet(store: Store) -> StoreFleet:
    return StoreFleet(store, "m", "d", BOUNDS, BREAKER)


def fail(store: Store, code: str, host: str, times: int = 3) -> None:
    for _ in range(times):
        store.load_attempts.failed(store.load_attempts.begin("m", "d", Process(host, 1, 1)), code, "It failed.", "load")


def report(store: Store, name: str, phase: str) -> None:
    row = WorkerRow(id=name, model="m", node="n", process=Process.this(), device="cpu", phase=WorkerPhase(phase))
    store.workers.report(row)


@pytest.mark.fault("A2")
def test_one_bad_host_stops_nobody_else(store: Store, fleet: StoreFleet) -> None:
    """Failures whose cause is a host's stop that host; while others work, workers may be started."""
    report(store, "good", "idle")
    fail(store, "missing_file", "bad")

    assert store.load_attempts.breaker("m", "d", BREAKER, "bad").is_open
    assert not store.load_attempts.breaker("m", "d", BREAKER, "good").is_open
    assert fleet.observe().breaker is None


@pytest.mark.fault("A2")
def test_a_failure_of_the_model_itself_stops_every_host_and_no_worker(store: Store, fleet: StoreFleet) -> None:
    """A repository that does not exist starts no more workers anywhere; the two that work are still wanted."""
    report(store, "one", "idle")
    report(store, "two", "generating")
    for host in ("a", "b", "c"):
        fail(store, "unknown_repository", host, times=1)

    seen = fleet.observe()
    decision = decide(seen, BOUNDS, Decision(2, ""))

    assert store.load_attempts.breaker("m", "d", BREAKER, "another").everywhere
    assert (decision.target, "breaker is open" in decision.reason) == (2, True)
    assert decide(replace(seen, ready_now=0), BOUNDS, Decision(2, "")).target == 0


@pytest.mark.fault("A2")
def test_an_open_breaker_never_lowers_the_target_while_a_worker_works() -> None:
    """In a rollout to something broken Serve would end the last good worker to reach a lower target."""
    seen = Observation(
        queued_jobs=0,
        queued_work_s=0.0,
        running_jobs=0,
        running_left_s=0.0,
        ready_s=(),
        startup_s=10.0,
        arrivals=((0, 0.0),) * WINDOWS,
        idle_s=0.0,
        breaker="3 loads failed",
        ready_now=1,
    )

    assert decide(seen, BOUNDS, Decision(2, "")).target == 2


@pytest.mark.fault("A2")
def test_one_bad_host_does_not_stop_a_worker_that_still_loads(store: Store, fleet: StoreFleet) -> None:
    """As long as another worker is on its way, the fleet is not told that nothing can be started."""
    report(store, "coming", "load")
    fail(store, "missing_file", "bad")

    assert fleet.observe().breaker is None


@pytest.mark.fault("A2")
def test_a_worker_that_is_stuck_on_a_bad_host_gets_a_substitute(store: Store, fleet: StoreFleet) -> None:
    """One more is wanted, within max_workers, for each worker that waits where the model cannot be loaded."""
    report(store, "good", "idle")
    report(store, "stuck", "failed")
    fail(store, "missing_file", "bad")

    decision = decide(fleet.observe(), BOUNDS, Decision(2, ""))

    assert decision.target == 3


@pytest.mark.fault("A2")
def test_a_load_that_works_forgives_its_own_host_only(store: Store) -> None:
    """A success elsewhere leaves a bad host's breaker open and tells its name; one on that host closes it."""
    fail(store, "missing_file", "bad")
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process("good", 1, 1)))

    after_another = store.load_attempts.breaker("m", "d", BREAKER, "bad")
    anywhere = store.load_attempts.breaker("m", "d", BREAKER)
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process("bad", 1, 1)))
    after_its_own = store.load_attempts.breaker("m", "d", BREAKER, "bad")

    assert (after_another.is_open, after_another.hosts) == (True, ("bad",))
    assert (anywhere.is_open, anywhere.hosts) == (False, ("bad",))
    assert (after_its_own.is_open, after_its_own.hosts) == (False, ())


@pytest.mark.fault("A2")
def test_a_failure_of_the_model_is_forgiven_by_a_load_on_any_host(store: Store) -> None:
    """A repository that was not there for a while was never the host's fault."""
    fail(store, "unknown_repository", "a")
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process("b", 1, 1)))

    assert not store.load_attempts.breaker("m", "d", BREAKER, "a").is_open


@pytest.mark.fault("A2")
def test_a_first_worker_on_a_known_bad_host_gets_a_substitute(store: Store, fleet: StoreFleet) -> None:
    """From zero, a worker that lands where the model cannot be loaded holds nobody up once it could be loaded elsewhere."""
    fail(store, "missing_file", "bad")
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process("good", 1, 1)))
    report(store, "stuck", "failed")

    decision = decide(fleet.observe(), BOUNDS, Decision(2, ""))

    assert decision.target == 3


@pytest.mark.fault("A2")
def test_a_bad_host_has_one_trial_after_a_while(store: Store, fleet: StoreFleet) -> None:
    """From zero, too, a mended host comes back without an operator; one failure more leaves it alone for as long again."""
    fail(store, "missing_file", "bad")
    at_once = fleet.observe().breaker
    _age_failures(store, BREAKER.trial_s + 1)
    after_a_while = store.load_attempts.breaker("m", "d", BREAKER, "bad")
    wanted = decide(fleet.observe(), BOUNDS, Decision(0, "")).target
    fail(store, "missing_file", "bad", times=1)

    assert at_once is not None
    assert (after_a_while.is_open, after_a_while.retry_in_s, wanted) == (False, 0, BOUNDS.min_workers)
    assert store.load_attempts.breaker("m", "d", BREAKER, "bad").is_open
    assert decide(fleet.observe(), BOUNDS, Decision(0, "")).target == 0


@pytest.mark.fault("A2")
def test_a_failure_of_the_model_itself_has_no_trials(store: Store) -> None:
    """What no host can load costs no device every half an hour."""
    fail(store, "unknown_repository", "a")
    _age_failures(store, BREAKER.trial_s + 1)

    assert store.load_attempts.breaker("m", "d", BREAKER, "a").is_open


def _age_failures(store: Store, seconds: float) -> None:
    with store.database.write() as connection:
        connection.execute(loads.update().values(ended_at=loads.c.ended_at - seconds))


@pytest.mark.fault("A2")
def test_health_names_the_host_on_which_loading_was_given_up(tmp_path: Path) -> None:
    """One bad host is named, without our marks of its boot, and the model's breaker is closed where others load it."""
    with running(tmp_path) as service:
        for _ in range(3):
            load = service.store.load_attempts.begin("ace-step", "", Process("gpu-7/boot/pid:[1]", 1, 1))
            service.store.load_attempts.failed(load, "missing_file", "It failed.", "load")
        service.store.load_attempts.succeeded(service.store.load_attempts.begin("ace-step", "", Process.this()))

        breaker = service.client.get("/v1/health").json()["breakers"]["ace-step"]

    assert (breaker["open"], breaker["hosts"]) == (False, ["gpu-7"])


@pytest.mark.fault("E3")
def test_a_hub_that_is_away_opens_nothing(store: Store) -> None:
    """What passes by itself makes the pauses longer and never opens the breaker."""
    fail(store, "hub_unreachable", "a", times=5)

    found = store.load_attempts.breaker("m", "d", BREAKER, "a")

    assert not found.is_open
    assert found.retry_in_s > 20


@pytest.mark.fault("A1")
def test_a_worker_that_is_let_go_while_it_loads_has_not_crashed(store: Store) -> None:
    """A load whose process ended after fewer workers were wanted is no failure."""
    me = Process.this()
    store.decisions.publish("m", 3, "work")
    store.load_attempts.begin("m", "d", Process(me.host, me.pid, me.born - 1))
    store.decisions.publish("m", 0, "no work")

    store.load_attempts.fail_crashed()

    assert store.load_attempts.breaker("m", "d", BREAKER).runs == 0


@pytest.mark.fault("A1", "E29")
def test_a_worker_that_dies_while_it_is_wanted_has_crashed(store: Store) -> None:
    """More workers being wanted is no excuse: the load counts as crashed, and the message names Ray's memory monitor."""
    me = Process.this()
    store.decisions.publish("m", 1, "work")
    store.load_attempts.begin("m", "d", Process(me.host, me.pid, me.born - 1))
    store.decisions.publish("m", 2, "more work")

    store.load_attempts.fail_crashed()

    breaker = store.load_attempts.breaker("m", "d", BREAKER)
    assert breaker.code == "load_crashed"
    assert "Ray's memory monitor" in breaker.message


class Loaded:
    """As much of a worker as a start needs: its load works at once."""

    failed_phase = ""

    def __init__(self) -> None:
        self.loads = 0

    def announce(self) -> None:
        pass

    def show_pause(self, reason: str) -> None:
        pass

    def load(self) -> None:
        self.loads += 1


@pytest.mark.fault("A10")
def test_a_database_outage_during_a_start_costs_no_loaded_model(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every word of a start is said again until the database listens, and the model is loaded once."""
    outages = dict.fromkeys(("collect_dead_processes", "breaker", "begin", "succeeded"), 1)

    def fails_once(name: str, says: Any) -> Any:
        def say(*arguments: Any, **named: Any) -> Any:
            if outages[name]:
                outages[name] -= 1
                raise StoreUnavailable("away")
            return says(*arguments, **named)

        return say

    for name in ("breaker", "begin", "succeeded"):
        monkeypatch.setattr(store.load_attempts, name, fails_once(name, getattr(store.load_attempts, name)))
    monkeypatch.setattr(
        store, "collect_dead_processes", fails_once("collect_dead_processes", store.collect_dead_processes)
    )
    monkeypatch.setattr("serve_app.worker.startup.RETRY_S", 0.01)
    worker = Loaded()

    Startup(worker, store, "m", "d", AppArgs(data_dir=tmp_path)).run()  # type: ignore[arg-type]  # Loaded is enough of a Worker

    assert worker.loads == 1
    assert not any(outages.values())
    assert store.load_attempts.startup_s("m") is not None


@pytest.mark.fault("A10")
def test_a_load_whose_beginning_was_acknowledged_too_late_is_one_load(store: Store) -> None:
    """Said again under its id, it leaves no second row that would be buried as a crash."""
    me = Process.this()
    store.load_attempts.begin("m", "d", me, "a-load")
    store.load_attempts.begin("m", "d", me, "a-load")

    store.load_attempts.succeeded("a-load")

    with store.database.read() as connection:
        assert len(connection.execute(loads.select()).all()) == 1


def test_a_paused_model_keeps_its_jobs_and_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sophia pause` is told to whoever waits, wants no worker, and `sophia resume` lets the job run."""
    with running(tmp_path) as service:
        monkeypatch.setenv("SOPHIA_DATA_DIR", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert cli.main(["pause", "ace-step", "--reason", "the bill"]) == 0

        job = service.submit()
        waiting_for = service.job(job["id"])["waiting_for"]
        ready = service.client.get("/readyz")

        assert job["state"] == "queued"
        assert "paused by the operator since" in waiting_for
        assert "the bill" in waiting_for
        assert ready.status_code == 200  # its worker is up, and idle
        assert StoreFleet(service.store, "ace-step", "", BOUNDS, BREAKER).observe().paused == "the bill"
        assert cli.main(["resume", "ace-step"]) == 0
        assert service.ended(job["id"])["state"] == "succeeded"
        assert cli.main(["pause", "no-such-model"]) != 0


@pytest.mark.fault("A6")
def test_a_job_of_a_model_that_is_gone_is_told(tmp_path: Path) -> None:
    """When its model leaves the configuration, a job is still listed and shown with the reason, and its retry is refused."""
    with running(tmp_path, workers=0) as service:
        job = service.submit()
        cancelled = service.submit()
        service.client.post(f"/v1/jobs/{cancelled['id']}/cancel")
    with running(tmp_path, models={"other": service.args.models["ace-step"]}, workers=0) as service:
        listed = service.client.get("/v1/jobs")
        shown = eventually(lambda: service.job(job["id"])["waiting_for"])
        retried = service.client.post(f"/v1/jobs/{cancelled['id']}/retry")

        assert listed.status_code == 200
        assert len(listed.json()["jobs"]) == 2
        assert "is no longer in this service's configuration" in shown
        assert retried.status_code == 409
        assert service.job(cancelled["id"])["state"] == "cancelled"

"""The crash breaker: which workers a failed load stops. Also an operator's pause."""

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
from serve_app.scaling.policy import Decision, decide
from serve_app.store import Store, WorkerRow
from serve_app.store.tables import loads
from serve_app.worker.startup import Startup
from tests.support.helpers import eventually
from tests.support.running import running
from tests.support.scaling import NOTHING

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
    """Failures caused by one host open the breaker for that host only, and other hosts may start workers."""
    report(store, "good", "idle")
    fail(store, "missing_file", "bad")

    assert store.load_attempts.breaker("m", "d", BREAKER, "bad").is_open
    assert not store.load_attempts.breaker("m", "d", BREAKER, "good").is_open
    assert fleet.observe().breaker is None


@pytest.mark.fault("A2")
def test_a_failure_of_the_model_itself_stops_every_host_and_no_worker(store: Store, fleet: StoreFleet) -> None:
    """A failure caused by the model opens the breaker for every host, and the target keeps the workers that are ready."""
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
    """The target stays, because in a rollout of a broken version Serve would stop the last working replica to reach a lower one."""
    seen = replace(NOTHING, breaker="3 loads failed", ready_now=1)

    assert decide(seen, BOUNDS, Decision(2, "")).target == 2


@pytest.mark.fault("A2")
def test_one_bad_host_does_not_stop_a_worker_that_still_loads(store: Store, fleet: StoreFleet) -> None:
    """While a worker on another host is loading, the breaker of a bad host does not stop scaling."""
    report(store, "coming", "load")
    fail(store, "missing_file", "bad")

    assert fleet.observe().breaker is None


@pytest.mark.fault("A2")
def test_a_worker_that_is_stuck_on_a_bad_host_gets_a_substitute(store: Store, fleet: StoreFleet) -> None:
    """For each worker that is stuck on a bad host, the target is one higher, up to max_workers."""
    report(store, "good", "idle")
    report(store, "stuck", "failed")
    fail(store, "missing_file", "bad")

    decision = decide(fleet.observe(), BOUNDS, Decision(2, ""))

    assert decision.target == 3


@pytest.mark.fault("A2")
def test_a_load_that_works_forgives_its_own_host_only(store: Store) -> None:
    """A successful load on another host leaves a bad host's breaker open; one on that host closes it."""
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
    """A successful load on any host closes a breaker that a failure of the model opened."""
    fail(store, "unknown_repository", "a")
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process("b", 1, 1)))

    assert not store.load_attempts.breaker("m", "d", BREAKER, "a").is_open


@pytest.mark.fault("A2")
def test_a_first_worker_on_a_known_bad_host_gets_a_substitute(store: Store, fleet: StoreFleet) -> None:
    """A first worker that is stuck on a bad host gets a substitute if another host has loaded the model before."""
    fail(store, "missing_file", "bad")
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process("good", 1, 1)))
    report(store, "stuck", "failed")

    decision = decide(fleet.observe(), BOUNDS, Decision(2, ""))

    assert decision.target == 3


@pytest.mark.fault("A2")
def test_a_bad_host_has_one_trial_after_a_while(store: Store, fleet: StoreFleet) -> None:
    """A bad host gets one trial after `trial_s`, also when no worker runs, and another failure opens its breaker again."""
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
    """A failure caused by the model gets no trial."""
    fail(store, "unknown_repository", "a")
    _age_failures(store, BREAKER.trial_s + 1)

    assert store.load_attempts.breaker("m", "d", BREAKER, "a").is_open


def _age_failures(store: Store, seconds: float) -> None:
    with store.database.write() as connection:
        connection.execute(loads.update().values(ended_at=loads.c.ended_at - seconds))


@pytest.mark.fault("A2")
def test_health_names_the_host_on_which_loading_was_given_up(tmp_path: Path) -> None:
    """/v1/health lists a bad host by its plain name, and the model's breaker is closed if other hosts can load it."""
    with running(tmp_path) as service:
        for _ in range(3):
            load = service.store.load_attempts.begin("ace-step", "", Process("gpu-7/boot/pid:[1]", 1, 1))
            service.store.load_attempts.failed(load, "missing_file", "It failed.", "load")
        service.store.load_attempts.succeeded(service.store.load_attempts.begin("ace-step", "", Process.this()))

        breaker = service.client.get("/v1/health").json()["breakers"]["ace-step"]

    assert (breaker["open"], breaker["hosts"]) == (False, ["gpu-7"])


@pytest.mark.fault("E3")
def test_a_hub_that_is_away_opens_nothing(store: Store) -> None:
    """Temporary failures lengthen the pauses between loads and never open the breaker."""
    fail(store, "hub_unreachable", "a", times=5)

    found = store.load_attempts.breaker("m", "d", BREAKER, "a")

    assert not found.is_open
    assert found.retry_in_s > 20


@pytest.mark.fault("A1")
def test_a_worker_that_is_let_go_while_it_loads_has_not_crashed(store: Store) -> None:
    """A load whose process ended after the target was lowered does not count as a failure."""
    me = Process.this()
    store.decisions.publish("m", 3, "work")
    store.load_attempts.begin("m", "d", Process(me.host, me.pid, me.born - 1))
    store.decisions.publish("m", 0, "no work")

    store.load_attempts.fail_crashed()

    assert store.load_attempts.breaker("m", "d", BREAKER).runs == 0


@pytest.mark.fault("A1", "E29")
def test_a_worker_that_dies_while_it_is_wanted_has_crashed(store: Store) -> None:
    """A load whose process died while the target was raised counts as crashed, and the message mentions Ray's memory monitor."""
    me = Process.this()
    store.decisions.publish("m", 1, "work")
    store.load_attempts.begin("m", "d", Process(me.host, me.pid, me.born - 1))
    store.decisions.publish("m", 2, "more work")

    store.load_attempts.fail_crashed()

    breaker = store.load_attempts.breaker("m", "d", BREAKER)
    assert breaker.code == "load_crashed"
    assert "Ray's memory monitor" in breaker.message


class Loaded:
    """The parts of a worker that its start uses. Its load succeeds at once."""

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
    """A starting worker repeats every write until the database accepts it, and loads the model once."""
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
    """Repeating the start of a load with the same id inserts no second row, which would later count as a crash."""
    me = Process.this()
    store.load_attempts.begin("m", "d", me, "a-load")
    store.load_attempts.begin("m", "d", me, "a-load")

    store.load_attempts.succeeded("a-load")

    with store.database.read() as connection:
        assert len(connection.execute(loads.select()).all()) == 1


def test_a_paused_model_keeps_its_jobs_and_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `sophia pause` a job stays queued and shows the reason; after `sophia resume` it runs."""
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
def test_a_job_of_a_model_that_is_gone_says_so(tmp_path: Path) -> None:
    """A job whose model was removed from the configuration is still listed, shows that reason, and cannot be retried."""
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

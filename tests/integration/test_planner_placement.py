"""`placement: auto`: the planner runs in the workers where it fits beside the model, else in processes that only plan."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import BreakerArgs, ModelArgs, PlannerArgs, QueueArgs, ScalingArgs, planner_stage
from serve_app.config.language_model import LanguageModelArgs
from serve_app.engine.planner.planner import QwenPlanner
from serve_app.engine.planner.simulated import SimulatedPlanner
from serve_app.errors import DeviceMemory
from serve_app.jobs import WorkerPhase
from serve_app.scaling.planner_fleet import PlannerFleet
from serve_app.scaling.policy import Decision, decide
from serve_app.store import Store
from serve_app.worker.planner_worker import PlannerWorker
from serve_app.worker.worker import WorkerOptions, first_row
from tests.support.queue import submit_unplanned
from tests.support.running import running, simulated

STAGE = planner_stage("ace-step")
BOUNDS = ScalingArgs(min_workers=1, max_workers=4, idle_s=0)
FOLLOWING = PlannerArgs(source="simulated", placement="auto", jobs_at_once=4, scaling=BOUNDS)
MORE_THAN_ANY = 1e6
"""GB that no machine has."""
PLANNED = {"thinking": "codes", "bpm": 90, "keyscale": "C major", "timesignature": "4", "steps": 1}
"""A request of which only codes are left to plan."""


def automatic(reserve_gb: float) -> ModelArgs:
    """A simulated model with a small random planner, of which only the placement matters."""
    settings = {"source": "random", "context": 1024, "rows": 2, "render_reserve_gb": reserve_gb}
    return simulated(planner=settings, simulated={"step_s": 0.001, "plan_s": 0.001})


def test_a_planner_that_fits_runs_in_the_worker(tmp_path: Path) -> None:
    """Health shows what was measured: weights, cache, and what was free beside the model. No other process is wanted."""
    with running(tmp_path, {"ace-step": automatic(0.01)}) as service:
        job = service.ended(service.submit(**PLANNED)["id"])
        health = service.client.get("/v1/health").json()
        ready = service.client.get("/readyz")

    [worker] = health["workers"]
    planner = worker["planner"]
    assert job["state"] == "succeeded"
    assert (planner["placement"], planner["reason"], planner["rows"]) == ("worker", None, 2)
    assert planner["free_bytes"] > planner["weights_bytes"] + planner["cache_bytes"] > 0
    assert (health["scale"][STAGE]["wanted"], ready.status_code) == (0, 200)


def test_a_planner_that_does_not_fit_is_left_to_other_processes(tmp_path: Path) -> None:
    """The worker renders, health and waiting jobs say why nothing is planned, and a process that only plans does it."""
    with running(tmp_path, {"ace-step": automatic(MORE_THAN_ANY)}) as service:
        job = service.submit(**PLANNED)
        other = service.ended(service.submit(steps=1)["id"])
        [worker] = service.client.get("/v1/health").json()["workers"]
        waiting = service.job(job["id"])
        planner = new_planner(service.store)
        planner.start()
        done = service.ended(job["id"])
        planner.drain()

    assert (other["state"], done["state"]) == ("succeeded", "succeeded")
    assert (worker["phase"], worker["planner"]["placement"]) == ("idle", "own")
    assert "1000000.00 GB must stay free to render songs" in worker["planner"]["reason"]
    assert waiting["waiting_for"].startswith("its plan waits for a planner: ")


def test_without_auto_too_little_memory_is_an_error(tmp_path: Path) -> None:
    """With `placement: worker` or `own` nothing else could plan, so the load fails and says how much is missing."""
    planner = QwenPlanner("m", ModelArgs(device="cpu"), LanguageModelArgs(source="random"), tmp_path, reserved=10**18)

    with pytest.raises(DeviceMemory, match=r"The planner needs \d+\.\d\d GB on cpu"):
        planner.load(lambda phase, fraction, detail: None)


@pytest.mark.parametrize(
    ("placements", "wanted", "reason"),
    [
        ([], 0, "no worker has measured yet"),
        (["worker"], 0, "the workers plan"),
        (["own"], 1, "min_workers is 1"),
        (["own", "worker"], 0, "the workers plan"),
    ],
)
def test_workers_decide_whether_planners_start(
    sqlite_store: Store, placements: list[str], wanted: int, reason: str
) -> None:
    """A process that only plans is wanted once a worker cannot plan, unless another worker can."""
    fleet = PlannerFleet(sqlite_store, "m", "d", FOLLOWING, BreakerArgs())
    for placement in placements:
        report_worker(sqlite_store, {"planner": {"placement": placement}})

    decision = decide(fleet.observe(), BOUNDS, Decision(0, ""))

    assert decision.target == wanted
    assert reason in decision.reason


def test_planners_outlast_the_workers_that_asked_for_them(sqlite_store: Store) -> None:
    """When no worker runs any more, the last measurement counts: waiting plans start processes that only plan."""
    fleet = PlannerFleet(sqlite_store, "m", "d", FOLLOWING, BreakerArgs())
    worker = report_worker(sqlite_store, {"planner": {"placement": "own"}})
    fleet.observe()
    sqlite_store.workers.forget(worker)
    submit_unplanned(sqlite_store)

    assert decide(fleet.observe(), BOUNDS, Decision(0, "")).target == 1


def test_workers_plan_for_callers_until_planners_are_asked_for(sqlite_store: Store) -> None:
    """A cluster whose workers plan, or have not measured, does not count as one that starts processes for plans."""
    fleet = PlannerFleet(sqlite_store, "m", "d", FOLLOWING, BreakerArgs())
    fleet.observe()
    fleet.publish(0, "none is needed")
    before = sqlite_store.decisions.takers(planner_stage("m"))
    report_worker(sqlite_store, {"planner": {"placement": "own"}})
    fleet.observe()
    fleet.publish(1, "one is needed")

    assert before == set()
    assert sqlite_store.decisions.takers(planner_stage("m")) == {""}


def report_worker(store: Store, facts: dict[str, Any]) -> str:
    row = replace(first_row("m", WorkerOptions()), facts=facts, phase=WorkerPhase.IDLE)
    store.workers.report(row)
    return row.id


def new_planner(store: Store) -> PlannerWorker:
    model = simulated(planner={"source": "simulated", "placement": "own"}, simulated={"plan_s": 0.001})
    return PlannerWorker(
        "ace-step", SimulatedPlanner(model), store, QueueArgs(), jobs_at_once=2, options=WorkerOptions()
    )

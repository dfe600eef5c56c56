"""Planners in processes of their own: they plan, workers render, and each has its own scale, health and costs."""

from pathlib import Path

from serve_app.config import BreakerArgs, ModelArgs, PlannerArgs, QueueArgs, ScalingArgs, planner_stage
from serve_app.engine.planner.orders import order
from serve_app.engine.planner.protocol import Wishes
from serve_app.engine.planner.simulated import SimulatedPlanner
from serve_app.scaling.planner_fleet import PlannerFleet
from serve_app.scaling.policy import Decision, decide
from serve_app.store import NewPlan, Store
from serve_app.worker.planner_worker import PlannerWorker
from serve_app.worker.worker import WorkerOptions
from tests.support.helpers import eventually
from tests.support.queue import claim_plan, submit_unplanned
from tests.support.recordings import recording
from tests.support.running import running, simulated

MODEL = simulated(planner={"source": "simulated", "placement": "own", "price_per_hour": 1.0})
BOUNDS = ScalingArgs(min_workers=0, max_workers=4, target_wait_s=10, idle_s=5)


def test_a_planner_of_its_own_plans_for_the_workers(tmp_path: Path) -> None:
    """A worker without a planner renders what a process that only plans has planned; health and costs show both."""
    with running(tmp_path, {"ace-step": MODEL}) as service:
        job = service.submit(thinking="codes")
        planner = new_planner(service.store, MODEL)
        planner.start()
        done = service.ended(job["id"])
        plan = service.client.get(f"/v1/jobs/{job['id']}/plan").json()
        health = service.client.get("/v1/health").json()
        planner.drain()
        owners = {owner.model: owner for owner in service.store.costs.owners(1)}

    stage = planner_stage("ace-step")
    assert done["state"] == "succeeded"
    assert len(plan["codes"][0]) == 10
    assert {worker["model"] for worker in health["workers"]} == {"ace-step", stage}
    assert health["scale"][stage]["ready"] == 1
    assert (owners[stage].songs, owners["ace-step"].songs) == (0, 1)
    assert owners[stage].gpu_s > 0


def test_recordings_are_heard_where_the_model_is(tmp_path: Path) -> None:
    """Processes that only plan cannot hear an upload: the call is refused at once, and so is a plan that they get nevertheless."""
    with running(tmp_path, {"ace-step": MODEL}) as service:
        upload = service.client.post("/v1/inputs", content=recording("flac", seconds=3)).json()
        answer = service.client.post("/v1/understand", json={"source": upload["name"]})
        new = NewPlan(order(Wishes(""), source=upload["name"]), 3.0, kind="understand")
        plan = service.store.plans.submit("ace-step", new, owner="", deadline_s=600, max_attempts=3)
        planner = new_planner(service.store, MODEL)
        planner.start()
        [ended] = eventually(lambda: service.store.plans.ended([plan.id]))
        planner.drain()

    assert answer.status_code == 422
    assert "only where the planner runs in the workers" in answer.json()["detail"]
    assert ended.error is not None
    assert ended.error.code == "invalid_request"


def test_planners_scale_by_batches_of_plans(sqlite_store: Store) -> None:
    """Ten plans for a planner that makes four at once are three batches; planning ones count once for each process."""
    planner = PlannerArgs(source="simulated", placement="own", jobs_at_once=4, scaling=BOUNDS)
    fleet = PlannerFleet(sqlite_store, "m", "d", planner, BreakerArgs())
    idle = fleet.observe()
    for _ in range(10):
        submit_unplanned(sqlite_store, duration=60.0)
    waiting = fleet.observe()
    for worker in ("one", "one", "two"):
        claim_plan(sqlite_store, worker)
    planning = fleet.observe()

    assert (idle.queued_jobs, decide(idle, BOUNDS, Decision(0, "")).target) == (0, 0)
    assert (waiting.queued_jobs, waiting.running_jobs) == (3, 0)
    assert waiting.queued_work_s == 600 * BOUNDS.work_prior
    assert decide(waiting, BOUNDS, Decision(0, "")).target == 3
    assert (planning.queued_jobs, planning.running_jobs) == (2, 2)
    assert planning.arrivals[0][0] == 10


def test_a_dead_planners_plan_goes_to_another(tmp_path: Path) -> None:
    """A planner that dies in the middle loses its plan to the next one, which makes it."""
    with running(tmp_path, {"ace-step": MODEL}) as service:
        job = service.submit(thinking="codes")
        claim_plan(service.store, "dead", "ace-step", lease_s=0)
        service.store.plans.enforce(3600)
        planner = new_planner(service.store, MODEL)
        planner.start()
        done = service.ended(job["id"])
        planner.drain()
        attempt = service.store.plans.of_job(job["id"]).attempt

    assert (done["state"], done["attempt"], attempt) == ("succeeded", 1, 2)


def new_planner(store: Store, model: ModelArgs) -> PlannerWorker:
    planner = SimulatedPlanner(model)
    return PlannerWorker("ace-step", planner, store, QueueArgs(), jobs_at_once=2, options=WorkerOptions())

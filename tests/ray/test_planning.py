"""Planning on a real one-node Ray cluster: in the workers, and in processes that only plan.

The third model has the toy model's language model as its planner, which is said not to fit beside the model.
"""

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray import serve

from serve_app.app import build
from serve_app.config import AppArgs, planner_stage
from serve_app.store import Store
from tests.support.helpers import eventually

pytestmark = [pytest.mark.timeout(300)]

FIXED = {"min_workers": 1, "max_workers": 1}
MODEL: dict[str, Any] = {
    "source": "simulated",
    "scaling": FIXED,
    "num_cpus": 0.1,
    "simulated": {"step_s": 0, "plan_s": 0.5},
}
MODELS = {
    "together": MODEL | {"planner": {"source": "simulated"}},
    "apart": MODEL | {"planner": {"source": "simulated", "placement": "own", "num_cpus": 0.1, "scaling": FIXED}},
    "too large": MODEL
    | {"planner": {"source": "embedded", "render_reserve_gb": 1e6, "num_cpus": 0.1, "rows": 2, "scaling": FIXED}},
}
SONG = {"prompt": "piano", "duration": 4, "seed": 1, "format": "flac", "thinking": "codes"}


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> AppArgs:
    return AppArgs.model_validate({"data_dir": tmp_path_factory.mktemp("planning"), "models": MODELS})


@pytest.fixture(scope="module")
def client(one_node: httpx.Client, args: AppArgs) -> Iterator[httpx.Client]:
    """A client of a service with planners in workers, in processes of their own, and where the workers have decided."""
    serve.run(build(args), name="sophia", route_prefix="/")
    yield one_node
    serve.delete("sophia")


@pytest.mark.parametrize("model", MODELS)
def test_a_song_is_planned_in_either_placement(client: httpx.Client, args: AppArgs, model: str) -> None:
    """The song has the codes that were planned in its worker, or in a process that only plans, also if the worker asked for it."""
    job = submit(client, model)
    done = ended(client, job)
    plan = client.get(f"/v1/jobs/{job}/plan").json()
    store = Store(args.resolved_database_url)
    owners = {owner.model for owner in store.costs.owners(1) if owner.gpu_s}
    store.close()

    assert done["state"] == "succeeded", done
    assert len(plan["codes"][0]) == 20
    assert (planner_stage(model) in owners) == (model != "together")


def test_the_plan_of_a_killed_planner_is_made_again(client: httpx.Client, args: AppArgs) -> None:
    """A planner that is killed in the middle of a plan loses it at once; the one that Serve starts instead makes it."""
    store = Store(args.resolved_database_url)
    job = submit(client, "apart", duration=10)
    planning = eventually(lambda: task if (task := store.plans.of_job(job)).worker else None)
    [row] = [row for row in store.workers.seen() if row.id == planning.worker]
    os.kill(row.process.pid, signal.SIGKILL)
    done = ended(client, job)
    task = store.plans.of_job(job)
    store.close()

    assert (done["state"], done["attempt"]) == ("succeeded", 1)
    assert task.attempt == 2


def submit(client: httpx.Client, model: str, **fields: object) -> str:
    answer = client.post("/v1/jobs", json=SONG | {"model": model} | fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(client: httpx.Client, job: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        seen: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
        return None if seen["state"] in ("queued", "running") else seen

    return eventually(found, 120)

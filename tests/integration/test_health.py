"""Health, readiness, models and costs over HTTP."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import eventually
from tests.support.running import Service, running, simulated


def test_health_tells_what_songs_cost(tmp_path: Path) -> None:
    """A model with a price reports its total cost, its cost per song and the cost of loading; without a price, costs are null."""
    models = {"paid": simulated(price_per_hour=3600.0), "free": simulated(workers=0)}
    with running(tmp_path, models) as service:
        job = service.ended(service.submit()["id"])
        assert job["gpu_s"] == job["timing"]["gpu_s"] > 0
        service.store.costs.add_device_time(service.store.workers.seen()[0], {"loading": 10.0}, 3600.0)
        costs = eventually(lambda: found if (found := _costs(service))["idle_s"] > 0 else None)
    assert (costs["hours"], costs["songs"]) == (24, 1)
    assert costs["cost"] == pytest.approx(costs["loading_s"] + costs["idle_s"] + costs["generating_s"], abs=0.2)
    assert costs["per_song"] == costs["cost"]
    assert costs["lost_to_loading"] == pytest.approx(costs["loading_s"], abs=0.1)
    with running(tmp_path / "free") as service:
        service.ended(service.submit()["id"])
        assert service.client.get("/v1/health").json()["costs"]["ace-step"]["cost"] is None


def _costs(service: Service) -> dict[str, Any]:
    return dict(service.client.get("/v1/health").json()["costs"]["paid"])


def test_ping_and_probes_answer(service: Service) -> None:
    """/ping contains version and commit, and the probes answer 200 while a worker can generate."""
    assert service.client.get("/ping").json() == {"pong": True, "version": "0.1.0", "commit": "test"}
    assert service.client.get("/healthz").status_code == 200
    assert service.client.get("/readyz").json()["ready"] is True


def test_health_tells_workers_jobs_and_scale(service: Service, song: dict[str, Any]) -> None:
    """/v1/health contains the jobs by state, the worker's phase, and a notice that the simulated engine makes no music."""
    # the number of ended jobs may be a moment old
    eventually(lambda: service.client.get("/v1/health").json()["jobs"]["succeeded"] >= 1)
    health = service.client.get("/v1/health").json()
    assert health["status"] == "ok"
    (worker,) = health["workers"]
    assert (worker["model"], worker["phase"], worker["error"]) == ("ace-step", "idle", None)
    assert health["scale"]["ace-step"]["ready"] == health["scale"]["ace-step"]["wanted"] == 1
    assert "ace-step is a simulation" in health["notices"][0]


def test_models_tell_variant_tasks_and_defaults(service: Service) -> None:
    """The variant of a model is known once a worker has read its checkpoint, and null before that."""
    answer = service.client.get("/v1/models").json()
    known, asleep = answer["models"]
    assert (known["name"], known["is_default"], known["variant"], known["ready_workers"]) == (
        "ace-step",
        True,
        "turbo",
        1,
    )
    assert known["defaults"]["steps"] == 8
    assert (asleep["name"], asleep["variant"], asleep["ready_workers"]) == ("asleep", None, 0)
    assert (answer["max_duration_s"], answer["max_variations"]) == (600, 8)


def test_without_workers_readyz_says_so(tmp_path: Path) -> None:
    """/readyz answers 503 with the reason while a model has no worker."""
    with running(tmp_path, workers=0) as service:
        answer = service.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "reason": "ace-step: no worker of this model is running yet"}
        assert service.client.get("/v1/health").json()["status"] == "degraded"


def test_every_field_of_the_openapi_page_is_explained(service: Service) -> None:
    """Every property has a description and either examples or a schema that has them."""
    schemas = service.client.get("/openapi.json").json()["components"]["schemas"]
    missing = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, spec in schema.get("properties", {}).items()
        if "description" not in spec or not (spec.get("examples") or _refers(spec))
    ]
    assert missing == []


def _refers(spec: dict[str, Any]) -> bool:
    """Whether the field is an object or a list of objects, whose own properties have examples."""
    return "$ref" in json.dumps(spec)

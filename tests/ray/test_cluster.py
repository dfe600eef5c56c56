"""Placement on a cluster of several nodes whose GPUs exist only in Ray's resources; the simulated engine needs none."""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from serve_app.app import build
from serve_app.config import AppArgs
from serve_app.jobs import Job
from serve_app.store import Store
from tests.support.helpers import eventually, free_port

pytestmark = [pytest.mark.timeout(300)]

CARD = "ray.io/accelerator-type"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without a GPU, two nodes with a 4090 each, one with another card."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    try:
        for card in ("GeForce-RTX-4090", "GeForce-RTX-4090", "NVIDIA-A100"):
            cluster.add_node(num_cpus=2, num_gpus=1, labels={CARD: card})
        ray.init(cluster.address, log_to_driver=bool(os.environ.get("SOPHIA_TEST_LOGS")))
        yield cluster
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> AppArgs:
    """Model m with three workers that want a 4090 each, and a model for A100s."""
    model = {"source": "simulated", "device": "cuda", "simulated": {"step_s": 0.1}}
    models = {
        "m": {
            **model,
            "label_selector": {CARD: ["GeForce-RTX-4090", "GeForce-RTX-5090"]},
            "scaling": {"min_workers": 3, "max_workers": 3},
        },
        "large": {**model, "label_selector": {CARD: "NVIDIA-A100"}},
    }
    return AppArgs.model_validate({"data_dir": tmp_path_factory.mktemp("cluster"), "models": models})


@pytest.fixture(scope="module")
def client(cluster: Cluster, args: AppArgs) -> Iterator[httpx.Client]:
    """A client of Sophia, once the two workers are ready that have a card."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve._run(build(args), name="sophia", route_prefix="/", _blocking=False)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        eventually(lambda: _scale(client).get("ready") == 2, 90)
        yield client


@pytest.fixture(scope="module")
def store(args: AppArgs) -> Iterator[Store]:
    """The database as an operator sees it."""
    store = Store(args.resolved_database_url)
    yield store
    store.close()


def test_workers_get_a_node_each_with_the_card_that_their_model_wants(
    cluster: Cluster, client: httpx.Client, store: Store
) -> None:
    """Each of the two nodes with a 4090 gets one worker of m, and the A100's node the other model's."""
    workers = eventually(lambda: found if len(found := store.workers.seen()) == 3 else None)
    nodes = [_node_of(cluster, worker.id, store).node_id for worker in workers]
    cards = {node["NodeID"]: node["Labels"][CARD] for node in ray.nodes() if CARD in node["Labels"]}
    assert len(set(nodes)) == 3
    assert sorted((worker.model, cards[node]) for worker, node in zip(workers, nodes, strict=True)) == [
        ("large", "NVIDIA-A100"),
        ("m", "GeForce-RTX-4090"),
        ("m", "GeForce-RTX-4090"),
    ]


def test_a_worker_without_a_place_is_pending_and_health_says_why(client: httpx.Client) -> None:
    """With three workers wanted and two cards, the third is pending with a reason."""
    scale = _scale(client)
    assert (scale["wanted"], scale["ready"], scale["pending"]) == (3, 2, 1)
    assert scale["pending_for"].startswith("the 2 nodes that fit are full: a worker needs 0.5 CPU and 1 GPU")


def test_a_killed_nodes_job_is_finished_by_the_other(cluster: Cluster, client: httpx.Client, store: Store) -> None:
    """When one of two nodes dies, its job runs again on the other after that node's own job."""
    body = {"prompt": "x", "duration": 1, "steps": 40, "format": "wav"}
    jobs = [client.post("/v1/jobs", json=body).json()["id"] for _ in range(2)]
    workers = eventually(lambda: found if all(found := [store.jobs.get(job).worker for job in jobs]) else None)
    assert workers[0] != workers[1]
    cluster.remove_node(_node_of(cluster, str(workers[0]), store), allow_graceful=False)
    ended = eventually(lambda: _all_ended(store, jobs), 60)
    assert [(job.status, job.attempt, job.worker) for job in ended] == [
        ("succeeded", 2, workers[1]),
        ("succeeded", 1, workers[1]),
    ]
    eventually(lambda: str(_scale(client).get("pending_for")).startswith("the only node that fits is full"), 60)
    assert _scale(client)["pending"] == 2


def _all_ended(store: Store, ids: list[str]) -> list[Job] | None:
    found = [store.jobs.get(job) for job in ids]
    return found if all(job.status.final for job in found) else None


def _node_of(cluster: Cluster, worker: str, store: Store) -> Any:
    """The node whose raylet started the worker's process."""
    pid = next(row.process.pid for row in store.workers.seen() if row.id == worker)
    raylet = psutil.Process(pid).ppid()
    return next(node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == raylet)


def _scale(client: httpx.Client) -> dict[str, Any]:
    try:
        answer = client.get("/v1/health")
        return dict(answer.json()["scale"]["m"]) if answer.status_code == 200 else {}
    except (httpx.TransportError, ValueError):  # Serve's proxy is starting
        return {}

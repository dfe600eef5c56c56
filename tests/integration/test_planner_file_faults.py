"""Faults of a planner with real files, seen by a client: each has its own clear end, and no job is lost."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.config import ModelArgs
from serve_app.engine.planner.network import Network
from serve_app.errors import CorruptFile, LoadError, WrongVocabulary
from serve_app.weights import random_planner
from serve_app.weights.planner_tokens import code_token
from serve_app.worker.worker import Worker
from tests.support.helpers import eventually
from tests.support.running import Service, running, simulated
from tests.support.worker_process import new_worker, worker_process

DECIDED = {"thinking": "codes", "bpm": 90, "keyscale": "C major", "timesignature": "4", "steps": 1, "duration": 4}
"""A request of which only twenty codes are left to plan."""
LONG = DECIDED | {"duration": 500}
"""One whose codes take some seconds."""


@pytest.fixture
def files(cache: Path, tmp_path: Path) -> Path:
    """A language model with random weights, which may be damaged."""
    folder = shutil.copytree(random_planner.build(cache, lambda *progress: None), tmp_path / "language model")
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder


@pytest.fixture
def model(files: Path) -> ModelArgs:
    """A simulated model whose planner has these files."""
    planner = {"source": str(files), "rows": 2, "placement": "worker"}
    return simulated(planner=planner, simulated={"step_s": 0.001}, workers=0)


@pytest.fixture
def service(model: ModelArgs, tmp_path: Path) -> Iterator[Service]:
    """A service of that model, without a worker."""
    with running(tmp_path / "sophia", {"ace-step": model}, workers=0) as service:
        yield service


@contextmanager
def working(service: Service, model: ModelArgs) -> Iterator[Worker]:
    worker = new_worker(service.args.data_dir, model, service.store)
    worker.start()
    try:
        yield worker
    finally:
        worker.drain()


def truncated(files: Path) -> None:
    weights = files / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])


def of_another_vocabulary(files: Path) -> None:
    tokenizer = files / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace(code_token(0), "<|another|>"))


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (truncated, CorruptFile, "model.safetensors is truncated or corrupt"),
        (of_another_vocabulary, WrongVocabulary, "<|audio_code_0|>"),
    ],
)
def test_a_language_model_that_cannot_be_used_loses_no_job(
    service: Service, model: ModelArgs, files: Path, damage: Callable[[Path], None], error: type[LoadError], says: str
) -> None:
    """The worker does not become ready, health names file and fault, and jobs wait until a worker has good files."""
    whole = shutil.copytree(files, files.parent / "whole")
    damage(files)
    job = service.submit(**DECIDED)
    with pytest.raises(error):
        new_worker(service.args.data_dir, model, service.store).start()
    [worker] = service.client.get("/v1/health").json()["workers"]
    waiting = service.job(job["id"])
    shutil.rmtree(files)
    whole.rename(files)
    with working(service, model):
        done = service.ended(job["id"])

    assert (worker["phase"], worker["error"]["code"]) == ("failed", error.code)
    assert says in worker["error"]["message"]
    assert (waiting["state"], waiting["attempt"]) == ("queued", 0)
    assert (done["state"], done["attempt"]) == ("succeeded", 1)


def test_too_little_memory_in_the_middle_ends_the_job_that_was_planned(
    service: Service, model: ModelArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job fails and says what to change; the worker stays, and plans and renders the next one."""
    step = Network.step
    steps: list[int] = []

    def exhausted(network: Network, *arguments: Any) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(network, *arguments)

    with working(service, model):
        monkeypatch.setattr(Network, "step", exhausted)
        failed = service.ended(service.submit(**DECIDED)["id"])
        next_one = service.ended(service.submit(**DECIDED)["id"])

    assert (failed["state"], failed["error"]["code"]) == ("failed", "out_of_device_memory")
    assert "Plan fewer songs at once (rows)" in failed["error"]["message"]
    assert failed["plan"]["state"] == "failed"
    assert (next_one["state"], next_one["attempt"]) == ("succeeded", 1)


def test_cancelling_in_the_middle_frees_the_planner(service: Service, model: ModelArgs) -> None:
    """The job is cancelled at once, its planner ends before the codes are written, and the next job is planned."""
    with working(service, model):
        job = service.submit(**LONG)["id"]
        eventually(lambda: (service.job(job)["progress"] or {}).get("fraction"))
        cancelled = service.client.post(f"/v1/jobs/{job}/cancel").json()
        after = service.ended(service.submit(**DECIDED)["id"])
        charged = eventually(lambda: service.store.plans.of_job(job).gpu_s)

    assert (cancelled["state"], cancelled["plan"]["state"]) == ("cancelled", "cancelled")
    assert after["state"] == "succeeded"
    assert charged > 0
    assert service.store.plans.of_job(job).result is None


@pytest.mark.long
def test_a_worker_that_is_killed_in_the_middle_loses_no_plan(service: Service, model: ModelArgs) -> None:
    """Another worker makes the plan again, from its first code on; the job has one attempt and all its codes."""
    job = service.submit(**LONG)["id"]
    with worker_process(service.args.data_dir, model) as process:
        eventually(lambda: (service.job(job)["progress"] or {}).get("fraction"), 120)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with working(service, model):
        done = service.ended(job)
    plan = service.client.get(f"/v1/jobs/{job}/plan").json()

    assert (done["state"], done["attempt"]) == ("succeeded", 1)
    assert service.store.plans.of_job(job).attempt == 2
    assert [len(song) for song in plan["codes"]] == [2500]

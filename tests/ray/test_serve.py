"""The whole application on a real one-node Ray cluster, over HTTP."""

import io
import statistics
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from ray import serve

from serve_app.app import build
from serve_app.config import AppArgs
from tests.support.helpers import eventually
from tests.support.running import simulated

pytestmark = [pytest.mark.timeout(600)]

SONG = {"prompt": "warm lo-fi piano", "duration": 10, "seed": 7, "format": "flac"}
STEP_S = 0.1


class Bare:
    """The simplest Serve app, which /ping is compared with."""

    async def __call__(self, request: Any) -> dict[str, bool]:
        return {"pong": True}


@pytest.fixture(scope="module")
def client(
    one_node: httpx.Client, tmp_path_factory: pytest.TempPathFactory, cache: Path, checkpoint: Path
) -> Iterator[httpx.Client]:
    """Sophia with the embedded checkpoint and a simulated model of two workers, and a bare app beside it."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "weights").symlink_to(cache)
    args = AppArgs.model_validate(
        {
            "data_dir": folder,
            "models": {
                "embedded": {"source": "embedded", "device": "cpu"},
                "simulated": simulated(step_s=STEP_S, workers=2, num_cpus=0.1),
            },
        }
    )
    serve.run(
        serve.deployment(Bare).options(ray_actor_options={"num_cpus": 0.1}).bind(), name="bare", route_prefix="/bare"
    )
    serve.run(build(args), name="sophia", route_prefix="/")
    yield one_node
    serve.delete("sophia")
    serve.delete("bare")


def test_a_song_comes_out_right_and_twice_the_same(client: httpx.Client) -> None:
    """A FLAC of 10.0 s, stereo, 48 kHz, not silent; the same request and seed give the same bytes."""
    answers = [client.post("/v1/music", json=SONG) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    samples, rate = soundfile.read(io.BytesIO(answers[0].content))
    assert (rate, samples.shape) == (48_000, (480_000, 2))
    assert np.abs(samples).max() > 0.1


def test_equal_jobs_are_shared_by_two_workers(client: httpx.Client) -> None:
    """Twenty equal jobs on two workers end before one worker could have made them; the ideal is half of that."""
    steps = 10
    jobs = 20
    workers = 2
    body = {"prompt": "x", "model": "simulated", "duration": 1, "steps": steps, "format": "wav"}
    submitted = [client.post("/v1/jobs", json=body).json()["id"] for _ in range(jobs)]
    ended = [eventually(partial(_ended, client, job), 120) for job in submitted]
    assert {job["state"] for job in ended} == {"succeeded"}
    moments = [(_seconds(job["started_at"]), _seconds(job["finished_at"])) for job in ended]
    makespan = max(end for _, end in moments) - min(begin for begin, _ in moments)
    ideal = jobs * steps * STEP_S / workers
    print(
        f"{jobs} jobs of {steps * STEP_S:.1f} s on {workers} workers: {makespan:.2f} s, {makespan / ideal:.3f} times the ideal"
    )
    assert makespan < workers * ideal


def _ended(client: httpx.Client, job: str) -> dict[str, Any] | None:
    found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
    return found if found["state"] not in ("queued", "running") else None


def _seconds(moment: str) -> float:
    import datetime

    return datetime.datetime.fromisoformat(moment).timestamp()


def test_ping_is_quick_while_a_worker_generates(client: httpx.Client) -> None:
    """The median of /ping is at most twice that of a bare Serve app, measured alternately while songs are generated."""
    stop = threading.Event()

    def keep_generating() -> None:
        while not stop.is_set():
            httpx.post(f"{client.base_url}/v1/music", json={**SONG, "model": "embedded", "duration": 20}, timeout=300)

    player = threading.Thread(target=keep_generating)
    player.start()
    try:
        eventually(lambda: _phase(client, "embedded") == "generating")
        times: dict[str, list[float]] = {"/bare": [], "/ping": []}
        for _ in range(80):
            for path, taken in times.items():
                began = time.perf_counter()
                assert client.get(path).json()["pong"] is True
                taken.append(time.perf_counter() - began)
        # Between one song and the next the worker is idle for a moment.
        eventually(lambda: _phase(client, "embedded") == "generating", 60)
    finally:
        stop.set()
        player.join()
    bare, ping = (statistics.median(times[path]) * 1000 for path in ("/bare", "/ping"))
    print(f"while generating: /ping {ping:.2f} ms, a bare Serve app {bare:.2f} ms: {ping / bare:.2f} times")
    assert ping <= 2 * bare


def _phase(client: httpx.Client, model: str) -> str:
    return next(
        str(worker["phase"]) for worker in client.get("/v1/health").json()["workers"] if worker["model"] == model
    )


def test_the_api_process_has_no_torch_and_stays_small(client: httpx.Client) -> None:
    """After all of the above, no API process has torch mapped, and each is under 300 MB resident."""
    processes = [
        process
        for process in psutil.Process().children(recursive=True)
        if _title(process).startswith("ray::ServeReplica:sophia:Api")
    ]
    assert processes
    for process in processes:
        libraries = [region.path for region in process.memory_maps()]
        assert not [path for path in libraries if "libtorch" in path or "/torch/" in path]
        resident = process.memory_info().rss / 1e6
        print(f"API process: {resident:.0f} MB resident")
        assert resident < 300


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended, or is not ours to see
        return ""

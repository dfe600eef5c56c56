"""Songs that cannot be stored: they wait with a reason, cost no device time, and are stored as soon as that is possible."""

import logging
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.artifacts import Artifacts
from serve_app.artifacts import files as artifacts_module
from serve_app.background import storage_watch
from serve_app.config import BreakerArgs, ScalingArgs
from serve_app.jobs import Job, Status
from serve_app.music import MusicRequest
from serve_app.scaling.observation import StoreFleet
from serve_app.store import Beat, Store
from serve_app.store.tables import jobs
from serve_app.worker import song_storage
from serve_app.worker.claims import Claim
from serve_app.worker.song_storage import SongStorage
from tests.support.answering import answering
from tests.support.disks import fill, small_disk
from tests.support.helpers import eventually
from tests.support.running import Service, running

FULL = "the audio store is full"
REFUSED = "the audio store refuses access"
S3_SETTINGS = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:{port}",
    "AWS_ALLOW_HTTP": "true",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
}


@contextmanager
def on_a_small_disk(folder: Path, **settings: Any) -> Iterator[tuple[Service, Path]]:
    """A service whose audio is on a disk of 8 MB, and that disk."""
    with (
        small_disk(folder / "disk", megabytes=8) as disk,
        running(folder, artifacts_url=disk.as_uri(), **settings) as service,
    ):
        eventually(lambda: service.client.get("/readyz").status_code == 200)
        yield service, disk


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_watch, "EVERY_S", 0.1)
    monkeypatch.setattr(storage_watch, "FAILING_EVERY_S", 0.1)
    monkeypatch.setattr(song_storage, "RETRY_S", 0.1)


def _progress(service: Service, job: str) -> dict[str, Any]:
    return dict(service.job(job)["progress"] or {})


def _worker(service: Service) -> dict[str, Any]:
    [worker] = service.client.get("/v1/health").json()["workers"]
    return dict(worker)


@pytest.mark.fault("B14", "E5")
def test_a_song_that_waits_says_why_and_its_worker_claims_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk the finished song waits with a reason, later jobs stay queued with theirs, and the log has one line."""
    with caplog.at_level(logging.INFO, "ray.serve.sophia"), on_a_small_disk(tmp_path) as (service, disk):
        filler = fill(disk)
        first = service.submit()["id"]
        eventually(lambda: _progress(service, first).get("detail") == FULL)
        eventually(
            lambda: _worker(service)["detail"].startswith("stopped claiming: waits to store 1 song: the disk is full: ")
        )
        later = service.submit()["id"]
        eventually(lambda: FULL in (service.job(later)["waiting_for"] or ""))
        eventually(lambda: service.client.get("/v1/health").json()["status"] == "degraded")
        waiting = service.job(first)
        queued = service.job(later)
        worker = _worker(service)
        fleet = StoreFleet(service.store, "ace-step", "", ScalingArgs(), BreakerArgs())
        unstored = fleet.observe().unstored
        lines = [record for record in caplog.records if "cannot store songs" in record.getMessage()]
        filler.unlink()
        ended = [service.ended(job) for job in (first, later)]

        assert (waiting["state"], waiting["progress"]["stage"]) == ("running", "storing")
        assert (queued["state"], queued["attempt"]) == ("queued", 0)
        assert worker["error"]["code"] == "artifacts_unavailable"
        assert len(lines) == 1
        assert unstored == FULL
        assert [(job["state"], job["attempt"]) for job in ended] == [("succeeded", 1), ("succeeded", 1)]
        eventually(lambda: (_worker(service)["detail"], _worker(service)["error"]) == ("ready", None))
        eventually(lambda: fleet.observe().unstored is None)
        eventually(lambda: service.client.get("/v1/health").json()["status"] == "ok")


@pytest.mark.fault("E5", "E9")
def test_no_song_is_made_for_a_store_that_refuses_from_the_start(tmp_path: Path) -> None:
    """A worker on a full disk takes no job, reports why, and starts once there is room."""
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        filler = fill(disk)
        with running(tmp_path, artifacts_url=disk.as_uri()) as service:
            job = service.submit()["id"]
            eventually(lambda: "stopped claiming: " in _worker(service)["detail"])
            eventually(lambda: FULL in (service.job(job)["waiting_for"] or ""))
            ready = service.client.get("/readyz")
            waiting = service.job(job)
            filler.unlink()
            ended = service.ended(job)

        assert ready.status_code == 503
        assert (waiting["state"], waiting["attempt"]) == ("queued", 0)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)


@pytest.mark.fault("E5")
def test_no_song_is_made_for_a_bucket_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without write permission takes no job and names the bucket; clients see only the kind of cause."""
    monkeypatch.setattr(artifacts_module, "_RETRY_S", 1)
    with answering() as bucket:
        bucket.says(403, "AccessDenied")
        for name, value in S3_SETTINGS.items():
            monkeypatch.setenv(name, value.format(port=bucket.port))
        with running(tmp_path, artifacts_url="s3://music/audio") as service:
            job = service.submit()["id"]
            eventually(lambda: "lack a permission in the bucket 'music'" in _worker(service)["detail"])
            eventually(lambda: REFUSED in (service.job(job)["waiting_for"] or ""))
            waiting = service.job(job)

    assert (waiting["state"], waiting["attempt"]) == ("queued", 0)
    assert "music" not in waiting["waiting_for"]


@pytest.mark.fault("E5", "E9")
def test_a_song_waits_for_a_folder_that_turned_read_only(tmp_path: Path) -> None:
    """A song waits with its reason while the folder is read-only, then is stored without being generated again."""
    with on_a_small_disk(tmp_path) as (service, disk):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        job = service.submit()["id"]
        eventually(lambda: _progress(service, job).get("stage") == "storing")
        why = _progress(service, job)["detail"]
        eventually(lambda: "the folder is read-only" in _worker(service)["detail"])
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        ended = service.ended(job)

    assert why == "the audio store is read-only"
    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)


@pytest.mark.fault("B14", "E5")
def test_the_deadline_ends_a_song_that_waits_and_names_the_store(tmp_path: Path) -> None:
    """The run limit does not count waiting for the store; the deadline does, and its error names the cause."""
    with on_a_small_disk(tmp_path, queue={"run_limit_s": 5}) as (service, disk):
        fill(disk)
        job = service.submit(deadline_s=11)["id"]
        ended = service.ended(job)

        assert (ended["state"], ended["error"]["code"]) == ("expired", "deadline_exceeded")
        assert ended["error"]["message"].endswith(f"passed while its finished song waited for the audio store: {FULL}")


@pytest.mark.fault("B14")
def test_seconds_of_waiting_for_the_store_are_no_seconds_of_running(store: Store) -> None:
    """Time spent waiting for the store extends an attempt's run limit by as much."""
    went_on = _claimed(store, stage="denoising", waited_s=100.0)
    waits = _claimed(store, stage="storing", waited_s=0.0)
    ran = _claimed(store, stage="denoising", waited_s=0.0)
    with store.database.write() as connection:
        connection.execute(jobs.update().values(started_at=jobs.c.started_at - 60))

    store.time_limits.enforce(run_limit_s=50)
    states = [store.jobs.get(job).status for job in (went_on, waits, ran)]
    with store.database.write() as connection:
        connection.execute(jobs.update().values(started_at=jobs.c.started_at - 100))
    store.time_limits.enforce(run_limit_s=50)
    later = [store.jobs.get(job).status for job in (went_on, waits)]

    assert states == [Status.RUNNING, Status.RUNNING, Status.FAILED]
    assert later == [Status.FAILED, Status.RUNNING]


def _claimed(store: Store, **progress: Any) -> str:
    request = MusicRequest(prompt="x", model="m", seed=1)
    store.jobs.submit(request, owner="", deadline_s=1000, max_attempts=3)
    job = store.claims.take("w", "m", 1000)
    assert job
    store.claims.heartbeat([Beat(job.id, job.attempt, "w", {"step": 1, "steps": 8, "fraction": 0.1, **progress})], 1000)
    return job.id


@pytest.mark.fault("B14")
def test_a_song_that_does_not_fit_stops_no_others(tmp_path: Path) -> None:
    """While a large song waits for room, smaller ones are stored; with room, it is stored too."""
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        (disk / "filler").write_bytes(bytes(5_000_000))
        artifacts = Artifacts(disk.as_uri())
        store = SongStorage("w", artifacts, max_waiting=2)
        claim = Claim(_job())
        waiting = threading.Thread(target=store.put, args=(claim, "a/1/0.wav", bytes(6_000_000)))
        waiting.start()
        eventually(lambda: claim.progress)
        claims_on = store.check() is None
        said = store.row_fields()["detail"]
        store.put(Claim(claim.job), "b/1/0.mp3", bytes(1_000_000))
        (disk / "filler").unlink()
        waiting.join(30)

        assert claims_on
        assert said.startswith("waits to store 1 song: the disk is full: ")
        assert not waiting.is_alive()
        assert {file.key: file.size for file in artifacts.list()} == {"a/1/0.wav": 6_000_000, "b/1/0.mp3": 1_000_000}
        assert store.row_fields() == {"detail": "ready", "error": None}


def _job() -> Job:
    request = MusicRequest(prompt="x", model="m", seed=1)
    return Job(
        id="a",
        owner="",
        model="m",
        status=Status.RUNNING,
        priority=0,
        rank=0,
        request=request,
        audio_seconds=30.0,
        created_at=0.0,
        deadline_at=1000.0,
        attempt=1,
        max_attempts=3,
        version=1,
    )

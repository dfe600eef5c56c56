"""The cost of event streams: it does not grow with the followers of a job, and unchanged jobs are not read."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.api.job_presenter import JobPresenter
from serve_app.api.views.jobs import JobView
from serve_app.jobs import Job
from serve_app.music import MusicRequest
from serve_app.store import Beat, Store
from serve_app.store.jobs import JobStore
from tests.support.helpers import eventually
from tests.support.running import Service, running

FOLLOWERS = 20


@pytest.mark.fault("B13")
def test_a_change_is_shown_once_for_all_its_followers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty followers of a running job receive every change, and each view is built once."""
    views: list[str] = []
    view = JobPresenter.view

    def counted(self: JobPresenter, job: Job) -> JobView:
        views.append(job.id)
        return view(self, job)

    with running(tmp_path, workers=0) as service:
        job = claimed(service.store)
        with following(service, job.id) as events:
            monkeypatch.setattr(JobPresenter, "view", counted)
            beat(service.store, job, 1)
            eventually(lambda: len(events) == 2 * FOLLOWERS)
            beat(service.store, job, 2)
            eventually(lambda: len(events) == 3 * FOLLOWERS)
            service.store.jobs.cancel(job.id)
            eventually(lambda: len(events) == 4 * FOLLOWERS)

    assert views == [job.id] * 3
    assert [event["progress"]["step"] for event in events[FOLLOWERS : 3 * FOLLOWERS]] == [1] * FOLLOWERS + [
        2
    ] * FOLLOWERS
    assert {event["state"] for event in events[3 * FOLLOWERS :]} == {"cancelled"}


@pytest.mark.fault("B13")
def test_a_watched_job_that_does_not_change_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another job changes, only the versions of the watched jobs are read."""
    read: list[str] = []
    get_many = JobStore.get_many

    def counted(self: JobStore, ids: Sequence[str]) -> dict[str, Job]:
        read.extend(ids)
        return get_many(self, ids)

    monkeypatch.setattr(JobStore, "get_many", counted)
    with running(tmp_path, workers=0) as service:
        watched = claimed(service.store)
        other = claimed(service.store)
        with following(service, watched.id) as events, following(service, other.id) as others:
            for step in range(1, 6):
                beat(service.store, other, step)
                eventually(partial(has_length, others, (step + 1) * FOLLOWERS))
            assert len(events) == FOLLOWERS
            service.store.jobs.cancel(watched.id)
            service.store.jobs.cancel(other.id)

    assert read.count(watched.id) == 1  # its end


def has_length(values: Sequence[object], length: int) -> bool:
    return len(values) == length


def claimed(store: Store) -> Job:
    request = MusicRequest(prompt="piano", model="ace-step", seed=1)
    store.jobs.submit(request, owner="", deadline_s=600, max_attempts=3)
    job = store.claims.take("somebody", "ace-step", 600)
    assert job is not None
    return job


def beat(store: Store, job: Job, step: int) -> None:
    progress = {"stage": "denoising", "step": step, "steps": 8, "fraction": step / 8}
    assert not store.claims.heartbeat([Beat(job.id, job.attempt, str(job.worker), progress)], 600)


@contextmanager
def following(service: Service, job: str) -> Iterator[list[dict[str, Any]]]:
    """The data of all events that FOLLOWERS followers of a job got, each of whom has got the first. They stay until its end."""
    events: list[dict[str, Any]] = []

    def follow() -> None:
        with httpx.stream("GET", f"{service.url}/v1/jobs/{job}/events", timeout=60) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            events.extend(json.loads(line.removeprefix("data: ")) for line in lines)

    threads = [threading.Thread(target=follow) for _ in range(FOLLOWERS)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(events) == FOLLOWERS)
    try:
        yield events
    finally:
        if not service.store.jobs.get(job).status.final:
            service.store.jobs.cancel(job)
        for thread in threads:
            thread.join()

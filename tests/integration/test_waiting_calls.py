"""Callers who wait for a song and leave: a repetition of the call makes no second song, and silence cancels the job."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.helpers import eventually
from tests.support.running import SONG, Service, running, simulated

GRACE_S = 30.0
"""Longer than any test."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose songs take two seconds."""
    models = {"ace-step": simulated(step_s=0.25)}
    with running(tmp_path_factory.mktemp("slow"), models, api={"leave_grace_s": GRACE_S}) as service:
        yield service


def leave(service: Service, seconds: float = 0.3, *, prompt: str, **fields: Any) -> None:
    """Ask for a song and hang up before it is ready, again and again until its job exists."""
    while True:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{service.url}/v1/music", json={**SONG, "prompt": prompt, **fields}, timeout=seconds)
        if jobs_with(service, prompt):
            return


def stay(service: Service, **fields: Any) -> httpx.Response:
    """Ask for a song and wait for it."""
    return httpx.post(f"{service.url}/v1/music", json={**SONG, **fields}, timeout=60)


def jobs_with(service: Service, prompt: str) -> list[dict[str, Any]]:
    jobs = service.client.get("/v1/jobs", params={"limit": 200}).json()["jobs"]
    return [job for job in jobs if job["request"]["prompt"] == prompt]


def test_a_repeated_call_waits_for_the_first_ones_job(slow: Service) -> None:
    """A caller who hangs up twice and calls again, without a seed, gets the song of the only job."""
    leave(slow, prompt="once", seed=None, steps=40)
    leave(slow, prompt="once", seed=None, steps=40)

    answer = stay(slow, prompt="once", seed=None, steps=40)

    [job] = jobs_with(slow, "once")
    assert answer.headers["content-location"] == job["audio"][0]["url"]


def test_a_song_that_was_finished_in_between_is_the_answer(slow: Service) -> None:
    """If the job ends before the call is repeated, the repetition is answered with its song."""
    leave(slow, prompt="meanwhile")
    [job] = jobs_with(slow, "meanwhile")
    slow.ended(job["id"])

    answer = stay(slow, prompt="meanwhile")

    assert answer.headers["content-location"] == f"/v1/jobs/{job['id']}/audio/0"
    assert len(jobs_with(slow, "meanwhile")) == 1


def test_two_callers_who_both_wait_get_a_song_each(slow: Service) -> None:
    """Equal calls at the same time are two jobs."""
    with ThreadPoolExecutor(2) as callers:
        answers = list(callers.map(lambda _: stay(slow, prompt="twins", seed=None), range(2)))

    assert len({answer.headers["content-location"] for answer in answers}) == 2


def test_an_answered_call_is_over(slow: Service) -> None:
    """The same call again, after its answer has arrived, makes another song."""
    first = stay(slow, prompt="again", seed=None)
    second = stay(slow, prompt="again", seed=None)

    assert first.headers["content-location"] != second.headers["content-location"]


def test_another_request_makes_another_song(slow: Service) -> None:
    """A call with other fields does not take the job over."""
    leave(slow, prompt="this")

    stay(slow, prompt="this", bpm=100)

    assert len(jobs_with(slow, "this")) == 2


def test_a_caller_who_does_not_return_cancels_the_job(tmp_path: Path) -> None:
    """When the grace is over, the job is cancelled, and a repetition makes a new one."""
    with running(tmp_path, workers=0, api={"leave_grace_s": 0.1}) as service:
        leave(service, prompt="gone")
        [job] = jobs_with(service, "gone")
        eventually(lambda: service.job(job["id"])["state"] == "cancelled")
        leave(service, prompt="gone")

        assert len(jobs_with(service, "gone")) == 2


def test_the_repetition_may_reach_another_api_process(tmp_path: Path) -> None:
    """A call that is repeated to another API process of the same database waits for the same job."""
    models = {"ace-step": simulated(step_s=0.25)}
    with running(tmp_path, models, api={"leave_grace_s": GRACE_S}) as one, running(tmp_path, models, workers=0) as two:
        leave(one, prompt="elsewhere")

        answer = stay(two, prompt="elsewhere")

        [job] = jobs_with(one, "elsewhere")
        assert answer.headers["content-location"] == job["audio"][0]["url"]


def test_another_key_takes_nothing_over(tmp_path: Path) -> None:
    """The same request of another API key makes a job of its own."""
    with running(tmp_path, workers=0, api={"leave_grace_s": GRACE_S}) as service:
        keys = [{"Authorization": f"Bearer {service.store.keys.create(name)}"} for name in ("one", "two")]
        eventually(lambda: service.client.get("/v1/jobs", headers=keys[1]).status_code == 200)
        for key in keys:
            eventually(partial(_leaves_a_job, service, key))

        counts = [len(service.client.get("/v1/jobs", headers=key).json()["jobs"]) for key in keys]

        assert counts == [1, 1]


def _leaves_a_job(service: Service, headers: dict[str, str]) -> bool:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{service.url}/v1/music", json=SONG, headers=headers, timeout=0.5)
    return bool(service.client.get("/v1/jobs", headers=headers).json()["jobs"])


def test_a_job_with_an_idempotency_key_outlives_its_caller(tmp_path: Path) -> None:
    """Who leaves with an Idempotency-Key can ask for the result later, so the job is not marked as left."""
    with running(tmp_path, workers=0, api={"leave_grace_s": 0}) as service:
        assert _leaves_a_job(service, {"Idempotency-Key": "k"})
        leave(service, prompt="other")
        [other] = jobs_with(service, "other")
        eventually(lambda: service.job(other["id"])["state"] == "cancelled")

        [kept] = jobs_with(service, SONG["prompt"])
        assert kept["state"] == "queued"


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.long)])
def test_callers_who_keep_repeating_get_one_job_each(tmp_path: Path, count: int) -> None:
    """Callers with time-outs of 2 s and a caption each, three times over, without a worker: as many jobs as captions."""
    with running(tmp_path, workers=0, api={"leave_grace_s": GRACE_S}) as service:

        def ask(number: int) -> None:
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{service.url}/v1/music", json={"prompt": f"caption {number}"}, timeout=2)

        def captions() -> list[str]:
            return sorted(job.request.prompt for job in service.store.jobs.page(limit=200))

        wanted = sorted(f"caption {number}" for number in range(count))
        with ThreadPoolExecutor(count) as callers:
            for _ in range(3):
                list(callers.map(ask, range(count)))
            while set(captions()) != set(wanted):  # on a busy machine some leave before there is a job
                list(callers.map(ask, range(count)))

        assert captions() == wanted

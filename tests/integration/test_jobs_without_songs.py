"""What the files of a job without songs answer: why there are none, and what to do."""

from pathlib import Path

import pytest

from serve_app.errors import GenerationError
from serve_app.jobs import Status
from tests.support.helpers import eventually
from tests.support.queue import claim
from tests.support.running import Service, running

FILES = ("audio", "audio/0", "songs.zip", "codes", "lyrics", "lyrics/0")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (Status.QUEUED, "it is queued. GET /v1/jobs/{id}/events tells when it has ended"),
        (Status.CANCELLED, "it was cancelled. POST /v1/jobs/{id}/retry runs it again"),
        (
            Status.FAILED,
            "it failed (generation_failed): the song is silent. POST /v1/jobs/{id}/retry runs it again",
        ),
        (
            Status.EXPIRED,
            "it expired (deadline_exceeded): The job did not finish before its deadline (deadline_s). "
            "POST /v1/jobs/{id}/retry runs it again",
        ),
    ],
)
def test_a_job_without_songs_says_why(tmp_path: Path, state: Status, reason: str) -> None:
    """Each of its files is a conflict with the job's state and error; so is its song as another one's source."""
    with running(tmp_path, workers=0) as service:
        job = _job(service, state)

        answers = [service.client.get(f"/v1/jobs/{job}/{file}") for file in FILES]

        as_source = {"prompt": "x", "task_type": "cover", "source": f"job:{job}/0"}
        refused = service.client.post("/v1/jobs", json=as_source).json()
    sentence = reason.format(id=job)
    assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {
        (409, f"Job {job} has no songs: {sentence}")
    }
    assert refused["detail"] == f"source: names a job that has no songs: {sentence}"


def _job(service: Service, state: Status) -> str:
    """A job in a state, without a worker."""
    job = str(service.submit(**({"deadline_s": 1} if state is Status.EXPIRED else {}))["id"])
    if state is Status.CANCELLED:
        service.client.post(f"/v1/jobs/{job}/cancel")
    if state is Status.FAILED:
        service.store.claims.fail(claim(service.store, model="ace-step"), GenerationError("the song is silent."))
    eventually(lambda: service.job(job)["state"] == state)
    return job

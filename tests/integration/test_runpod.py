"""RunPod's API as its documentation describes it; test_runpod_package.py has the real client."""

import base64
import io
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from serve_app.errors import BadAdapter
from tests.support.helpers import eventually
from tests.support.queue import claim
from tests.support.running import Service, running, simulated
from tests.support.webhooks import SECRET, Receiver

INPUT = {"caption": "warm piano", "audio_duration": 2, "audio_format": "flac", "infer_step": 4}
"""The input of the old handler's clients."""


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without a worker, whose model is also the endpoint `abc123`."""
    settings = {"runpod_endpoints": {"abc123": "ace-step"}}
    with running(tmp_path_factory.mktemp("idle"), workers=0, api=settings) as service:
        yield service


def post(service: Service, path: str, body: Any = None, endpoint: str = "ace-step") -> httpx.Response:
    return service.client.post(f"/v2/{endpoint}/{path}", json=body)


def run(service: Service, **fields: Any) -> str:
    answer = post(service, "run", {"input": INPUT, **fields})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def status(service: Service, job: str) -> dict[str, Any]:
    return dict(service.client.get(f"/v2/ace-step/status/{job}").json())


def test_a_job_runs_to_its_song(service: Service) -> None:
    """/run queues a job; /status ends with the song's address, figures and audio, which decodes and is not silent."""
    job = run(service)

    done = eventually(lambda: found if (found := status(service, job))["status"] == "COMPLETED" else None)

    [song] = done["output"]["songs"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(song["audio_base64"])))
    assert (rate, len(samples) / rate, bool(abs(samples).max() > 0.01)) == (48_000, 2.0, True)
    assert (song["format"], song["seconds"], song["sample_rate"]) == ("flac", 2.0, 48_000)
    assert httpx.get(song["url"]).content == base64.b64decode(song["audio_base64"])
    assert done["delayTime"] >= 0
    assert done["executionTime"] > 0
    assert service.job(job)["request"]["prompt"] == "warm piano"


def test_runsync_answers_with_the_song(service: Service) -> None:
    """/runsync waits and answers with the finished job."""
    answer = post(service, "runsync?wait=60000", {"input": INPUT}).json()

    assert answer["status"] == "COMPLETED"
    assert len(answer["output"]["songs"]) == 1


def test_runsync_answers_with_the_id_when_the_wait_is_over(idle: Service) -> None:
    """If the job takes longer than `wait`, the answer is its id and state, and the job goes on."""
    answer = post(idle, "runsync?wait=1000", {"input": {**INPUT, "seed": 1}}).json()

    assert answer == {"id": answer["id"], "status": "IN_QUEUE"}
    assert idle.job(answer["id"])["state"] == "queued"


def test_a_ping_touches_no_model(idle: Service) -> None:
    """The old handler's ping is answered at once, without a worker, by both routes."""
    pong = post(idle, "runsync", {"input": {"ping": True}}).json()
    later = status(idle, post(idle, "run", {"input": {"ping": True}}).json()["id"])

    assert [answer["output"]["pong"] for answer in (pong, later)] == [True, True]
    assert pong["status"] == later["status"] == "COMPLETED"


def test_any_configured_endpoint_id_is_served(idle: Service) -> None:
    """An old endpoint id leads to its model; an unknown one is refused with the known ones."""
    known = post(idle, "run", {"input": INPUT}, endpoint="abc123")
    unknown = post(idle, "run", {"input": INPUT}, endpoint="dead")

    assert known.status_code == 200
    assert unknown.status_code == 404
    assert "'ace-step' or 'abc123'" in unknown.json()["error"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": {**INPUT, "audio_duration": 900}}, "input.audio_duration: must be less than or equal to 600"),
        ({"input": {**INPUT, "lyrcs": "x"}}, "did you mean 'lyrics'?"),
        ({"input": {**INPUT, "prompt": "other"}}, "input.prompt: means the same as input.caption"),
        ({"input": {"lyrics": "x"}}, "input.prompt: is required"),
        ({"input": {**INPUT, "model": "none"}}, "input.model: must be a served model"),
        ({"input": {**INPUT, "caption": "  "}}, "input.caption: must not be blank"),
        ({"input": INPUT, "policy": {"ttl": 1}}, "policy.ttl: must be greater than or equal to 10000"),
        ({"input": INPUT, "webhook": "https://example.com/"}, "webhook: must be left out"),
        ({"input": INPUT, "webhook": "nonsense"}, "webhook: must be a URL"),
        ({}, "input: is required"),
    ],
)
def test_bad_input_is_refused_by_the_clients_own_names(idle: Service, body: Any, says: str) -> None:
    """An error has RunPod's status, and names the field as the client does."""
    answer = post(idle, "run", body)

    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_errors_have_runpods_statuses(idle: Service) -> None:
    """Unknown routes, jobs and bodies get 404 or 400 in JSON with `error`, also from the middleware."""
    too_large = post(idle, "run", {"input": {"caption": "x" * 2_000_000}})
    not_json = idle.client.post("/v2/ace-step/run", content=b"{", headers={"content-type": "application/json"})
    answers = [idle.client.get("/v2/ace-step/nothing"), idle.client.get("/v2/ace-step/status/nothing")]

    assert [answer.status_code for answer in (too_large, not_json, *answers)] == [400, 400, 404, 404]
    assert all("error" in answer.json() for answer in (too_large, not_json, *answers))


def test_a_cancelled_job_is_cancelled_everywhere(idle: Service) -> None:
    """/cancel answers CANCELLED, also a second time; the native route shows the same, and a stream of the job ends."""
    job = run(idle)

    answers = [post(idle, f"cancel/{job}").json() for _ in range(2)]

    assert answers == [{"id": job, "status": "CANCELLED"}] * 2
    assert idle.job(job)["state"] == "cancelled"
    assert post(idle, f"stream/{job}").json() == {"status": "FAILED", "error": "cancelled", "stream": []}
    assert post(idle, f"retry/{job}").status_code == 400


def test_a_stream_delivers_each_song_once(service: Service) -> None:
    """The first /stream after the end has the songs, a second one none, and `stream` is always there."""
    job = run(service, input={**INPUT, "batch_size": 2})
    service.ended(job)

    first, second = (post(service, f"stream/{job}").json() for _ in range(2))

    assert len(first["stream"]) == 2
    assert first["stream"][0]["output"]["format"] == "flac"
    assert second == {"status": "COMPLETED", "stream": []}


def test_answers_that_nobody_reads_do_not_fill_the_memory(service: Service) -> None:
    """While 50 MB of audio in answers are unread, a further answer has the song's address alone; then audio again."""
    job = run(service, input={**INPUT, "audio_duration": 38, "audio_format": "wav"})
    service.ended(job)
    address = httpx.URL(service.url)
    asked = f"GET /v2/ace-step/status/{job} HTTP/1.1\r\nHost: {address.netloc.decode()}\r\n\r\n".encode()
    with ExitStack() as unread:
        for _ in range(5):  # of 9.7 MB each
            client = unread.enter_context(socket.create_connection((address.host, address.port or 80)))
            client.sendall(asked)
            assert client.recv(12) == b"HTTP/1.1 200"

        [without] = status(service, job)["output"]["songs"]
    [again] = eventually(
        lambda: songs if "audio_base64" in (songs := status(service, job)["output"]["songs"])[0] else None
    )

    assert "audio_base64" not in without
    assert without["url"] == again["url"]


def test_a_running_job_shows_its_progress(tmp_path: Path) -> None:
    """While a job runs, `output` in /status is its progress."""
    with running(tmp_path, {"ace-step": simulated(step_s=0.5)}) as service:
        job = run(service)

        shown = eventually(lambda: found if "output" in (found := status(service, job)) else None)

        assert shown["status"] == "IN_PROGRESS"
        assert shown["output"]["stage"]
        assert shown["workerId"]
        post(service, f"cancel/{job}")


def test_a_job_beyond_its_execution_timeout_is_timed_out_and_can_be_retried(idle: Service) -> None:
    """`executionTimeout` counts while the job runs; /retry queues the job again under the same id."""
    post(idle, "purge-queue")
    job = run(idle, policy={"executionTimeout": 5000})
    claimed = claim(idle.store, model="ace-step", lease_s=600)
    assert claimed.request.run_limit_s == 5

    timed_out = eventually(lambda: found if (found := status(idle, job))["status"] != "IN_PROGRESS" else None)
    retried = post(idle, f"retry/{job}").json()

    assert timed_out["status"] == "TIMED_OUT"
    assert "run_limit_s" in timed_out["error"]
    assert retried == {"id": job, "status": "IN_QUEUE"}


def test_a_failed_job_says_why_and_can_be_retried(idle: Service) -> None:
    """A failure is an answer of status 200 with `error`."""
    post(idle, "purge-queue")
    job = run(idle)
    idle.store.claims.fail(claim(idle.store, model="ace-step"), BadAdapter("it is broken"))

    failed = status(idle, job)

    assert (failed["status"], failed["error"]) == ("FAILED", "it is broken")
    assert post(idle, f"retry/{job}").json()["status"] == "IN_QUEUE"


def test_a_job_beyond_its_ttl_is_gone(idle: Service) -> None:
    """A job that did not end within `ttl` is not found by /status, /stream, /cancel and /retry."""
    job = run(idle, policy={"ttl": 10_000})
    assert idle.job(job)["request"]["deadline_s"] == 10

    eventually(lambda: idle.job(job)["state"] == "expired")

    assert idle.client.get(f"/v2/ace-step/status/{job}").status_code == 404
    assert [post(idle, f"{route}/{job}").status_code for route in ("stream", "retry")] == [404, 404]


def test_a_purge_removes_the_callers_queued_jobs_only(tmp_path: Path) -> None:
    """/purge-queue cancels what one key has queued, with its webhooks' deliveries, and leaves others' and running jobs."""
    with running(tmp_path, workers=0, webhook_secret=SECRET, webhooks={"allow_private": True}) as service:
        one, two = ({"Authorization": service.store.keys.create(name)} for name in ("one", "two"))
        eventually(lambda: service.client.get("/v1/jobs", headers=two).status_code == 200)
        body = {"input": INPUT, "webhook": "http://127.0.0.1:9/x"}
        for key in (one, one, one, two):
            assert service.client.post("/v2/ace-step/run", json=body, headers=key).status_code == 200
        claim(service.store, model="ace-step")

        purged = [service.client.post("/v2/ace-step/purge-queue", headers=one).json() for _ in range(2)]

        assert purged == [{"removed": 2, "status": "completed"}, {"removed": 0, "status": "completed"}]
        assert service.store.backlog.counts() == {
            "queued": 1, "running": 1, "succeeded": 0, "failed": 0, "cancelled": 2, "expired": 0,
        }  # fmt: skip
        assert not service.store.backlog.recount()
        assert service.store.webhooks.pending("one") + service.store.webhooks.pending("two") >= 2


def test_health_counts_jobs_and_workers(service: Service) -> None:
    """/health has RunPod's names for the jobs and workers of the endpoint."""
    report = service.client.get("/v2/ace-step/health").json()

    assert report["workers"] | {"idle": 0, "running": 0} == {
        "idle": 0, "initializing": 0, "ready": 1, "running": 0, "throttled": 0, "unhealthy": 0,
    }  # fmt: skip
    assert set(report["jobs"]) == {"completed", "failed", "inProgress", "inQueue", "retried"}


def test_a_webhook_has_runpods_form(tmp_path: Path, receiver: Receiver) -> None:
    """The job is POSTed as /status shows it; an answer other than 200 is tried again."""
    with running(tmp_path, webhook_secret=SECRET, webhooks={"allow_private": True}) as service:
        receiver.answers += [(204, {}), (200, {})]
        job = run(service, webhook=receiver.url)

        eventually(lambda: len(receiver.received) == 2)

        first, second = (json.loads(received.body) for received in receiver.received)
        assert first == second
        assert (first["id"], first["status"]) == (job, "COMPLETED")
        assert first["output"]["songs"][0]["audio_base64"]
        delivered = eventually(lambda: view if (view := service.job(job)["webhook"])["state"] != "pending" else None)
        assert (delivered["state"], delivered["history"][0]["error"]) == ("delivered", "answered 204")


def test_a_family_that_is_off_is_not_there(tmp_path: Path) -> None:
    """Without `runpod` in api.compat its routes do not exist, and errors are Sophia's own."""
    with running(tmp_path, workers=0, api={"compat": []}) as service:
        answer = post(service, "run", {"input": INPUT})

        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"

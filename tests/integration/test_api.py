"""Jobs over HTTP: submission, waiting, events, cancellation, deletion and pages. Workers are simulated."""

import http.client
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile

from tests.support.helpers import eventually
from tests.support.running import SONG, Service, running, simulated


def test_music_answers_with_the_song_itself(service: Service) -> None:
    """POST /v1/music returns a stereo 48 kHz file of the requested length, with headers for its type, size and seed."""
    answer = service.client.post("/v1/music", json=SONG)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/flac"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["x-seed"] == "7"
    samples, rate = soundfile.read(io.BytesIO(answer.content))
    assert (rate, samples.shape) == (48000, (96000, 2))


def test_a_job_is_accepted_at_once_and_tells_where_to_go_on(service: Service) -> None:
    """The answer is 202 with a Location header, and the job's request contains the model and a seed."""
    answer = service.client.post("/v1/jobs", json={"prompt": "piano", "duration": 1})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert uuid.UUID(job["id"]).version == 7
    assert job["state"] in ("queued", "running")
    assert job["request"]["model"] == "ace-step"
    assert isinstance(job["request"]["seed"], int)
    assert service.ended(job["id"])["state"] == "succeeded"


def test_a_finished_job_tells_its_files_and_where_the_time_went(service: Service, song: dict[str, Any]) -> None:
    """Each variation has a file with its own seed, size and hash, and the job has its timing."""
    assert song["state"] == "succeeded"
    assert [file["seed"] for file in song["audio"]] == [7, 8]
    for index, file in enumerate(song["audio"]):
        body = service.client.get(file["url"]).content
        assert (file["url"], file["bytes"]) == (f"/v1/jobs/{song['id']}/audio/{index}", len(body))
        assert (file["seconds"], file["sample_rate"], file["channels"]) == (2.0, 48000, 2)
    assert song["timing"]["generate_s"] >= song["timing"]["gpu_s"] > 0
    assert song["error"] is song["progress"] is song["position"] is None


def test_waiting_gives_the_finished_job_in_one_call(service: Service) -> None:
    """`Prefer: wait=N` delays the answer until the job has ended."""
    answer = service.client.post("/v1/jobs", json=SONG, headers={"Prefer": "respond-async, wait=30"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=30"
    assert answer.json()["state"] == "succeeded"


def test_a_wait_that_is_too_short_gives_the_job_as_it_is(service: Service) -> None:
    """If the wait times out before the job has ended, the answer is 202 and the job continues."""
    answer = service.client.post("/v1/jobs", json={**SONG, "model": "asleep"}, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.json()["state"] == "queued"
    service.client.delete(f"/v1/jobs/{answer.json()['id']}")


def test_an_idempotency_key_makes_one_song_of_two_submissions(service: Service) -> None:
    """The same key with the same body returns the same job; with another body it gets 409."""
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = service.client.post("/v1/jobs", json=SONG, headers=headers).json()
    again = service.client.post("/v1/jobs", json=SONG, headers=headers)
    assert again.json()["id"] == first["id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = service.client.post("/v1/jobs", json={**SONG, "seed": 8}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_a_caller_of_music_who_goes_away_frees_the_worker(tmp_path: Path) -> None:
    """Closing the connection cancels the job, because no client could fetch its song."""
    with running(tmp_path, {"ace-step": simulated(step_s=0.2)}, api={"leave_grace_s": 0.1}) as service:
        host, port = service.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port))
        connection.request(
            "POST", "/v1/music", json.dumps({"prompt": "x", "steps": 200}), {"content-type": "application/json"}
        )
        eventually(lambda: service.client.get("/v1/jobs?state=running").json()["jobs"])
        connection.close()
        eventually(lambda: service.client.get("/v1/jobs?state=cancelled").json()["jobs"])
        assert service.client.post("/v1/music", json={**SONG, "steps": 1}).status_code == 200


def test_events_tell_every_state_and_end(service: Service) -> None:
    """The stream begins with a state event and ends with done, and its ids and progress increase."""
    job = service.submit(duration=2, steps=100)
    events = list(follow(service, job["id"]))
    assert [event["data"]["id"] for event in events] == [job["id"]] * len(events)
    assert events[0]["event"] == "state"
    assert events[-1]["event"] == "done"
    assert events[-1]["data"]["state"] == "succeeded"
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(set(ids))
    fractions = [event["data"]["progress"]["fraction"] for event in events if event["data"]["progress"]]
    assert fractions == sorted(fractions)
    assert any(0 < fraction < 1 for fraction in fractions)


def test_events_resume_after_the_last_one_seen(service: Service, song: dict[str, Any]) -> None:
    """A client that has missed the last event receives it; a client that has received it gets no further event."""
    (end,) = follow(service, song["id"])
    assert list(follow(service, song["id"], last=str(int(end["id"]) - 1))) == [end]
    assert list(follow(service, song["id"], last=end["id"])) == []


def follow(service: Service, job: str, last: str | None = None) -> Iterator[dict[str, Any]]:
    headers = {"Last-Event-ID": last} if last else {}
    with service.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as stream:
        assert stream.status_code == 204 or stream.headers["content-type"].startswith("text/event-stream")
        event: dict[str, Any] = {}
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if not line and event:
                yield event
                event = {}
            elif name:
                event[name] = json.loads(value) if name == "data" else value


def test_a_queued_job_says_its_place_and_why_it_waits(service: Service) -> None:
    """Each job that waits for a model without workers shows the reason and its position."""
    first = service.submit(model="asleep")
    second = service.submit(model="asleep")
    assert (service.job(first["id"])["position"], service.job(second["id"])["position"]) == (1, 2)
    assert service.job(first["id"])["waiting_for"] == "no worker of this model is running yet"
    assert service.job(first["id"])["eta_s"] is None
    for job in (first, second):
        assert service.client.delete(f"/v1/jobs/{job['id']}").status_code == 204


def test_a_queued_job_says_whether_workers_are_busy_or_paused(tmp_path: Path) -> None:
    """Behind another job it waits for the busy worker; during a pause nobody knows when it starts."""
    with running(tmp_path, {"ace-step": simulated(step_s=0.2)}) as service:
        service.ended(service.submit(steps=1)["id"])  # tells the model's speed
        first = service.submit(steps=200)["id"]
        second = service.submit(steps=1)["id"]
        busy = "no job before this one; the only worker is busy"
        eventually(lambda: service.job(second)["waiting_for"] == busy)
        guess = service.job(second)["eta_s"]
        service.store.pauses.pause("ace-step", "a new disk")
        paused = eventually(lambda: found if "a new disk" in (found := service.job(second))["waiting_for"] else None)
        for job in (first, second):
            service.client.post(f"/v1/jobs/{job}/cancel")
    assert guess is not None
    assert paused["eta_s"] is None


def test_cancelling_a_running_job_frees_the_worker_within_one_step(tmp_path: Path) -> None:
    """The next job starts within the duration of one step after the cancellation."""
    step_s = 0.5
    with running(tmp_path, {"ace-step": simulated(step_s=step_s)}) as service:
        long = service.submit(steps=200)
        following = service.submit(steps=1)
        eventually(lambda: (service.job(long["id"])["progress"] or {}).get("step", 0) >= 2)
        cancelled = service.client.post(f"/v1/jobs/{long['id']}/cancel").json()
        assert cancelled["state"] == "cancelled"
        ended = service.store.jobs.get(long["id"]).finished_at
        service.ended(following["id"])
        started = service.store.jobs.get(following["id"]).started_at
        assert ended is not None
        assert started is not None
        print(f"the next job started {started - ended:.3f} s after the cancellation; a step takes {step_s} s")
        assert started - ended < 1.5 * step_s
        again = service.client.post(f"/v1/jobs/{long['id']}/cancel")
        assert (again.status_code, again.json()["code"]) == (409, "conflict")


def test_a_deleted_job_is_gone_with_its_audio(service: Service) -> None:
    """DELETE answers 204; then the job and its file answer 404, and the audio store has no file of it."""
    job = service.ended(service.submit()["id"])
    key = service.store.jobs.get(job["id"]).audio[0].key
    assert service.artifacts.size(key) > 0
    assert service.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert service.client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert service.client.get(job["audio"][0]["url"]).status_code == 404
    assert list(service.artifacts.list(job["id"])) == []


def test_pages_go_through_all_jobs(service: Service) -> None:
    """The pages that next_cursor links contain every job once, newest first."""
    made = {service.submit(duration=1)["id"] for _ in range(5)}
    seen: list[str] = []
    page = service.client.get("/v1/jobs?limit=2").json()
    while True:
        seen += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        page = service.client.get(f"/v1/jobs?limit=2&cursor={page['next_cursor']}").json()
    assert made <= set(seen)
    assert seen == sorted(set(seen), reverse=True)
    for job in made:
        service.ended(job)

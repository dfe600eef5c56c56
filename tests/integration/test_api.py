"""The HTTP API over real sockets, with simulated workers."""

import http.client
import io
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from tests.support.databases import private_postgresql
from tests.support.helpers import eventually
from tests.support.running import Service, running, simulated

SONG = {"prompt": "warm lo-fi piano", "duration": 2, "seed": 7, "format": "flac"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two models. The first has one worker, the second has none."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    with running(tmp_path_factory.mktemp("api"), models, queue={"lease_s": 2}) as service:
        yield service


@pytest.fixture(scope="module")
def song(service: Service) -> dict[str, Any]:
    """A finished job with two files."""
    return service.ended(service.submit(**SONG, variations=2)["id"])


# --- Making songs -----------------------------------------------------------------------------------------------------


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
    with running(tmp_path, {"ace-step": simulated(step_s=0.2)}) as service:
        host, port = service.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port))
        connection.request(
            "POST", "/v1/music", json.dumps({"prompt": "x", "steps": 200}), {"content-type": "application/json"}
        )
        eventually(lambda: service.client.get("/v1/jobs?state=running").json()["jobs"])
        connection.close()
        eventually(lambda: service.client.get("/v1/jobs?state=cancelled").json()["jobs"])
        assert service.client.post("/v1/music", json={**SONG, "steps": 1}).status_code == 200


# --- Looking, following, cancelling, forgetting -----------------------------------------------------------------------


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


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_part_of_a_file_can_be_fetched(service: Service, song: dict[str, Any]) -> None:
    """A range at the start, in the middle or at the end returns those bytes with a Content-Range header."""
    url = song["audio"][0]["url"]
    size = song["audio"][0]["bytes"]
    whole = service.client.get(url).content
    for asked, expected in {"bytes=0-9": (0, 10), "bytes=100-": (100, size), "bytes=-7": (size - 7, size)}.items():
        answer = service.client.get(url, headers={"Range": asked})
        assert answer.status_code == 206
        assert answer.content == whole[slice(*expected)]
        assert answer.headers["content-range"] == f"bytes {expected[0]}-{expected[1] - 1}/{size}"
    beyond = service.client.get(url, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b"])
def test_a_range_that_is_none_gives_the_whole_file(service: Service, song: dict[str, Any], asked: str) -> None:
    """A Range header that RFC 9110 calls invalid, or that has an unknown unit, is ignored."""
    answer = service.client.get(song["audio"][0]["url"], headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, song["audio"][0]["bytes"])


def test_a_file_that_is_cached_is_not_sent_again(service: Service, song: dict[str, Any]) -> None:
    """The ETag is the file's SHA-256; If-None-Match with it gets 304, and If-Range with another ETag gets the whole file."""
    url = song["audio"][0]["url"]
    etag = f'"{song["audio"][0]["sha256"]}"'
    assert service.client.get(url).headers["etag"] == etag
    assert service.client.get(url, headers={"If-None-Match": f'"other", W/{etag}'}).status_code == 304
    part = {"Range": "bytes=0-3"}
    assert service.client.get(url, headers={**part, "If-Range": etag}).status_code == 206
    assert service.client.get(url, headers={**part, "If-Range": '"other"'}).status_code == 200


def test_head_tells_about_a_file_without_sending_it(service: Service, song: dict[str, Any]) -> None:
    """HEAD returns the headers of GET and no body."""
    answer = service.client.head(f"/v1/jobs/{song['id']}/audio")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == song["audio"][0]["bytes"]


def test_audio_of_an_unfinished_or_missing_variation_is_an_answer(service: Service, song: dict[str, Any]) -> None:
    """A job without audio answers 409, and a variation that the job does not have answers 404."""
    waiting = service.submit(model="asleep")
    answer = service.client.get(f"/v1/jobs/{waiting['id']}/audio")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert service.client.get(f"/v1/jobs/{song['id']}/audio/5").status_code == 404
    service.client.delete(f"/v1/jobs/{waiting['id']}")


# --- Wrong requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"duration": 601}, "duration", "less than or equal to 600"),
        ({"duration": "long"}, "duration", "number"),
        ({"duration": float("nan")}, "duration", "less than or equal to 600"),
        ({"variations": 9}, "variations", "less than or equal to 8"),
        ({"steps": 1.5}, "steps", "integer"),
        ({"format": "wma"}, "format", "'mp3', 'flac', 'wav', 'wav32', 'ogg', 'opus' or 'aac'"),
        ({"model": "gpt"}, "model", "'ace-step' or 'asleep'"),
        ({"task_type": "extract"}, "task_type", "'text2music'"),
        ({"keyscale": "H minor"}, "keyscale", "such as 'C major'"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": "a\x00b"}, "prompt", "must not contain a NUL character"),
        ({"prompt": "\ud800"}, "prompt", "unicode"),
        ({"prompt": " \n"}, "prompt", "must not be blank"),
        ({"prompt": None}, "prompt", "string"),
        ({"bpm": True}, "bpm", "integer"),
        ({"timesignature": 5}, "timesignature", "also written '2/4'"),
        ({"seed": -2}, "seed", "greater than or equal to -1"),
        ({"caption": "x"}, "caption", "where it is called 'prompt'"),
        ({"lenght": 5}, "lenght", "not a known field"),
        ({"durations": 5}, "durations", "did you mean 'duration'"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(
    service: Service, body: dict[str, Any], field: str, says: str
) -> None:
    """The 422 answer contains the field's path, its value and what is allowed."""
    content = json.dumps({"prompt": "x"} | body)
    answer = service.client.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid_request"), problem
    assert answer.headers["content-type"] == "application/problem+json"
    (wrong,) = problem["errors"]
    assert wrong["field"] == field
    assert says in wrong["message"]
    assert field in problem["detail"]
    assert "value" in wrong


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/music"])
def test_all_wrong_fields_are_reported_together(service: Service, path: str) -> None:
    """One 422 lists the fields that this service's configuration refuses beside those that are invalid everywhere."""
    body = {"prompt": " ", "model": "gpt", "webhook_url": "https://example.com/hook", "duration": 601}

    problem = service.client.post(path, json=body).json()

    assert [wrong["field"] for wrong in problem["errors"]] == ["prompt", "model", "webhook_url", "duration"]
    assert all(wrong["field"] in problem["detail"] for wrong in problem["errors"])


def test_a_wrong_field_is_reported_once(service: Service) -> None:
    """A webhook_url that is no URL, on a service without webhooks, has one entry."""
    problem = service.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": "nowhere", "bpm": 1}).json()

    assert [wrong["field"] for wrong in problem["errors"]] == ["webhook_url", "bpm"]


def test_a_missing_prompt_is_asked_for(service: Service) -> None:
    """A request without a prompt gets the answer that `prompt` is required."""
    problem = service.client.post("/v1/jobs", json={}).json()
    assert problem["detail"] == "prompt: is required"


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_body"),
        (b"\xff\xfe", "application/json", 400, "malformed_body"),
        (b"", "application/json", 422, "invalid_request"),
        (b"[1]", "application/json", 422, "invalid_request"),
        (b"prompt=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"prompt", "", 415, "unsupported_media_type"),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    service: Service, content: bytes, content_type: str, status: int, code: str
) -> None:
    """A body that is not JSON, not an object, or not declared as JSON gets an error that names the cause."""
    headers = {"content-type": content_type} if content_type else {}
    answer = service.client.post("/v1/jobs", content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_a_body_over_the_limit_is_refused_before_it_is_read(service: Service) -> None:
    """A Content-Length over the limit gets 413 before any byte of the body is sent."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
        )
        head = connection.recv(65536)
    assert head.startswith(b"HTTP/1.1 413 ")


def test_a_body_of_unknown_length_is_refused_at_the_limit(service: Service) -> None:
    """A chunked body gets 413 as soon as it exceeds the limit."""
    chunks = (b" " * 65536 for _ in range(64))
    answer = service.client.post("/v1/jobs", content=chunks, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_an_unknown_route_or_method_is_a_problem_too(service: Service) -> None:
    """404 and 405 answers are problem+json, and a 405 answer lists the allowed methods."""
    missing = service.client.get("/v2/jobs")
    wrong = service.client.put("/v1/jobs")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, POST"
    assert service.client.get("/v1/jobs/not-a-uuid").json()["errors"][0]["field"] == "job_id"
    assert service.client.get(f"/v1/jobs/{uuid.uuid4()}").json()["code"] == "not_found"


# --- Health -----------------------------------------------------------------------------------------------------------


def test_ping_and_probes_answer(service: Service) -> None:
    """/ping contains version and commit, and the probes answer 200 while a worker can generate."""
    assert service.client.get("/ping").json() == {"pong": True, "version": "0.1.0", "commit": "test"}
    assert service.client.get("/healthz").status_code == 200
    assert service.client.get("/readyz").json()["ready"] is True


def test_health_tells_workers_jobs_and_scale(service: Service, song: dict[str, Any]) -> None:
    """/v1/health contains the jobs by state, the worker's phase, and a notice that the simulated engine makes no music."""
    health = service.client.get("/v1/health").json()
    assert health["status"] == "ok"
    assert health["jobs"]["succeeded"] >= 1
    (worker,) = health["workers"]
    assert (worker["model"], worker["phase"], worker["error"]) == ("ace-step", "idle", None)
    assert health["scale"]["ace-step"]["ready"] == health["scale"]["ace-step"]["wanted"] == 1
    assert "simulated" in health["notices"][0]


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


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_keys_open_and_part_their_owners_jobs(tmp_path: Path) -> None:
    """Once a key exists, every route but the probes needs one, and only its owner can see a job."""
    with running(tmp_path) as service:
        mine, yours = (service.store.keys.create(name) for name in ("mine", "yours"))
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            refused = service.client.get("/v1/jobs", headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert service.client.get("/ping").status_code == service.client.get("/readyz").status_code == 200
        me, you = ({"Authorization": f"Bearer {key}"} for key in (mine, yours))
        job = service.client.post("/v1/jobs", json=SONG, headers=me).json()["id"]
        assert service.client.get(f"/v1/jobs/{job}", headers=me).status_code == 200
        assert service.client.get(f"/v1/jobs/{job}", headers=you).status_code == 404
        assert service.client.get("/v1/jobs", headers=you).json()["jobs"] == []


def test_mode_keys_is_closed_even_without_any_key(tmp_path: Path) -> None:
    """`auth.mode: keys` refuses every caller while no key exists; `none` admits every caller."""
    with running(tmp_path, auth={"mode": "keys"}) as service:
        assert service.client.get("/v1/jobs").status_code == 401
    with running(tmp_path, auth={"mode": "none"}) as service:
        service.store.keys.create("some")
        assert service.client.get("/v1/jobs").status_code == 200


# --- Trouble ----------------------------------------------------------------------------------------------------------


def test_a_database_that_is_away_is_503_and_pings_go_on(tmp_path: Path) -> None:
    """While the database is down the API answers 503 and /ping 200; the worker publishes its song once the database is back."""
    with private_postgresql() as server, running(tmp_path, database_url=server.get_uri()) as service:
        assert service.client.post("/v1/music", json=SONG).status_code == 200
        running_job = service.submit(steps=200)["id"]
        eventually(lambda: service.job(running_job)["state"] == "running")
        server.stop()
        refused = service.client.post("/v1/jobs", json=SONG)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert refused.headers["retry-after"] == "5"
        assert service.client.get("/ping").status_code == 200
        assert service.client.get("/readyz").status_code == 503
        server.start()
        eventually(lambda: service.client.get("/readyz").status_code == 200)
        finished = service.ended(running_job)
        assert (finished["state"], finished["attempt"]) == ("succeeded", 1)
        assert service.client.post("/v1/music", json=SONG).status_code == 200


def test_many_waiting_requests_are_all_answered(service: Service) -> None:
    """Twenty concurrent callers of /v1/music each receive their own song."""
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: answers.append(
                httpx.post(f"{service.url}/v1/music", json={**SONG, "duration": 1, "seed": seed}, timeout=60)
            )
        )
        for seed in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert sorted(int(answer.headers["x-seed"]) for answer in answers) == list(range(20))

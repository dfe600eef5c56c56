"""Wrong requests: the error names the field, the value and what is allowed."""

import json
import socket
import uuid
from typing import Any

import pytest

from tests.support.running import Service

EDIT = {"task_type": "edit", "source": f"input:{'0' * 64}"}
PART = {"task_type": "repaint", "source": f"input:{'0' * 64}", "repaint_start": 3}


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
        ({"task_type": "remix"}, "task_type", "'text2music', 'cover', 'cover-nofsq', 'repaint', 'extract'"),
        ({"task_type": "cover"}, "source", "is required, because task_type 'cover' makes a song from another one"),
        (
            {"repaint_start": 3},
            "repaint_start",
            "belongs to task_type 'repaint' or 'lego'; this request's task_type is 'text2music'",
        ),
        ({"track": "Drums"}, "track", "belongs to task_type 'extract' or 'lego'"),
        ({**PART, "repaint_end": 2}, "repaint_end", "must be greater than repaint_start, which is 3"),
        ({**PART, "repaint_start": -1}, "repaint_start", "greater than or equal to 0"),
        ({**PART, "task_type": "stems", "repaint_start": None, "variations": 2}, "task_type", "variations must be 1"),
        ({"lyrics_timing": True, "lyrics": "[verse]"}, "lyrics_timing", "needs lyrics with words"),
        ({"best_of": 2}, "best_of", "needs lyrics with words"),
        (
            {"best_of": 2, "lyrics": "la", "variations": 2},
            "best_of",
            "gives one song, so variations must be 1; it is 2",
        ),
        ({"best_of": 9, "lyrics": "la"}, "best_of", "less than or equal to 8"),
        ({"audio_codes": "<|audio_code_1|> 2"}, "audio_codes", "'2' at character 18 is no such code"),
        (
            {"audio_codes": "<|audio_code_70000|>"},
            "audio_codes",
            "'<|audio_code_70000|>' at character 1 is no such code",
        ),
        ({"audio_codes": []}, "audio_codes", "must not be empty"),
        ({"audio_codes": [1] * 3001}, "audio_codes", "must have at most 3000 entries"),
        ({"dcw": "maybe"}, "dcw", "must be true or false"),
        ({"metadata": {"a": 1}}, "metadata.a", "must be a string"),
        ({"timesteps": [1.5]}, "timesteps.0", "less than or equal to 1"),
        ({"keyscale": "H minor"}, "keyscale", "such as 'C major'"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": "a\x00b"}, "prompt", "must not contain a NUL character"),
        ({"prompt": "\ud800"}, "prompt", "unicode"),
        ({"prompt": " \n"}, "prompt", "must not be blank"),
        ({"prompt": None}, "prompt", "string"),
        ({"bpm": True}, "bpm", "integer"),
        ({"timesignature": 5}, "timesignature", "also written '2/4'"),
        ({"seed": -2}, "seed", "greater than or equal to -1"),
        ({**EDIT}, "source_lyrics", "is required, unless source_prompt is given"),
        ({**EDIT, "source_prompt": "x", "edit_start": 0.5, "edit_end": 0.5}, "edit_end", "greater than edit_start"),
        ({**EDIT, "source_prompt": "x", "edit_start": 1}, "edit_end", "greater than edit_start"),
        ({"edit_draws": 3}, "edit_draws", "belongs to task_type 'edit'"),
        ({**EDIT, "source_prompt": "x", "cover_strength": 0.5}, "cover_strength", "belongs to task_type 'text2music'"),
        ({"flow_edit_n_avg": 3}, "flow_edit_n_avg", "Sophia calls it 'edit_draws'"),
        ({"caption": "x"}, "caption", "Sophia calls it 'prompt'"),
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


def test_everything_that_a_submission_names_in_vain_is_reported_together(service: Service) -> None:
    """One 422 lists an unknown model beside a voice, an upload and a job that are not there."""
    body = {**EDIT, "source_prompt": "x", "model": "gpt", "voice": "anna"}
    other = {"task_type": "cover", "source": f"job:{uuid.uuid4()}/0", "reference": f"input:{'1' * 64}"}

    problems = [service.client.post("/v1/jobs", json={"prompt": "x", **given}).json() for given in (body, other)]

    assert [[wrong["field"] for wrong in problem["errors"]] for problem in problems] == [
        ["model", "voice", "source"],
        ["source", "reference"],
    ]


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

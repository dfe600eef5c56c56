"""ElevenLabs' music API as its reference describes it; test_elevenlabs_package.py has the real clients."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from tests.support.helpers import eventually
from tests.support.running import Service, running, simulated

PROMPT = {"prompt": "warm piano", "music_length_ms": 3000}
PLAN: dict[str, Any] = {
    "positive_global_styles": ["folk", "acoustic guitar"],
    "negative_global_styles": [],
    "sections": [
        {"section_name": "Verse", "positive_local_styles": ["soft"], "duration_ms": 3000, "lines": ["Rain", "again"]},
        {"section_name": "Chorus", "positive_local_styles": [], "duration_ms": 4000, "lines": ["Oh rain"]},
    ],
}
"""A plan for music_v1."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a worker, and a model that has none."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    with running(tmp_path_factory.mktemp("elevenlabs"), models, api={"leave_grace_s": 0.2}) as service:
        yield service


def post(service: Service, body: Any, path: str = "", **parameters: str) -> httpx.Response:
    return service.client.post(f"/elevenlabs/v1/music{path}", json=body, params=parameters)


def request_of(service: Service, answer: httpx.Response) -> dict[str, Any]:
    """The native request of the job that made a song."""
    assert answer.status_code == 200, answer.text
    return dict(service.job(answer.headers["song-id"])["request"])


def message(answer: httpx.Response) -> str:
    return str(answer.json()["detail"]["message"])


@pytest.mark.parametrize("path", ["", "/stream"])
def test_a_prompt_becomes_a_song(service: Service, path: str) -> None:
    """The answer is the audio, which decodes, has its length and is not silent; `song-id` leads to the job."""
    answer = post(service, {**PROMPT, "seed": 7, "force_instrumental": True}, path, output_format="flac")

    samples, rate = soundfile.read(io.BytesIO(answer.content))
    assert (rate, len(samples) / rate, bool(abs(samples).max() > 0.01)) == (48_000, 3.0, True)
    asked = request_of(service, answer)
    assert (asked["prompt"], asked["lyrics"], asked["seed"]) == ("warm piano", "[Instrumental]", 7)


def test_the_default_is_an_mp3_file(service: Service) -> None:
    """`auto` is mp3, and so are ElevenLabs' mp3 formats, whose rates are reported as not kept."""
    auto = post(service, PROMPT)
    named = post(service, PROMPT, output_format="mp3_44100_128")

    assert [answer.headers["content-type"] for answer in (auto, named)] == ["audio/mpeg", "audio/mpeg"]
    warning = "output_format mp3_44100_128 is mp3 with a variable bit rate at 48 kHz."
    assert warning not in json.loads(auto.headers["x-warnings"])
    assert warning in json.loads(named.headers["x-warnings"])
    assert warning in service.job(named.headers["song-id"])["warnings"]


def test_sections_become_lyrics(service: Service) -> None:
    """A plan's global styles are the prompt; its sections are lyrics with tags, which have the local styles."""
    asked = request_of(service, post(service, {"composition_plan": PLAN, "model_id": "music_v1"}))

    assert (asked["prompt"], asked["duration"]) == ("folk, acoustic guitar", 7)
    assert asked["lyrics"] == "[Verse - soft]\nRain\nagain\n\n[Chorus]\nOh rain"


def test_chunks_become_lyrics(service: Service) -> None:
    """A plan for music_v2 has texts with tags and directions; the styles of the first chunk are the prompt."""
    chunks = [
        {"text": "[Verse 1]\nRain {whispered}", "duration_ms": 3000, "positive_styles": ["folk"]},
        {
            "text": "[Chorus]\nOh rain",
            "duration_ms": 3000,
            "positive_styles": ["folk", "loud"],
            "negative_styles": ["jazz"],
            "context_adherence": "high",
        },
    ]

    answer = post(service, {"composition_plan": {"chunks": chunks}, "model_id": "music_v2"})

    asked = request_of(service, answer)
    assert (asked["prompt"], asked["duration"]) == ("folk", 6)
    assert asked["lyrics"] == "[Verse 1]\nRain [whispered]\n\n[Chorus - loud]\nOh rain"
    warnings = json.loads(answer.headers["x-warnings"])
    assert [warning.partition(" ")[0] for warning in warnings[:3]] == ["duration_ms", "negative", "context_adherence"]


def test_details_come_with_the_song(service: Service) -> None:
    """The multipart body has the plan and the metadata on one line, two lines below its type, and ends with the audio."""
    answer = post(service, {"composition_plan": PLAN}, "/detailed", output_format="flac")

    assert answer.status_code == 200, answer.text
    lines = answer.content.split(b"\r\n", 8)
    boundary = f"--sophia-{answer.headers['song-id']}".encode()
    assert (lines[0], lines[1], lines[4]) == (boundary, b"Content-Type: application/json", boundary)
    details = json.loads(lines[3])
    assert details["composition_plan"] == PLAN
    assert details["song_metadata"]["languages"] == ["en"]
    assert lines[6].startswith(b'Content-Disposition: attachment; filename="folk, acoustic guitar-')
    assert soundfile.info(io.BytesIO(lines[8])).duration == 7


def test_details_of_a_prompt_have_a_plan(service: Service) -> None:
    """Of an instrumental, one section of its length, in the form of the model's version; timestamps are empty."""
    body = {**PROMPT, "with_timestamps": True, "model_id": "music_v2"}

    details = json.loads(post(service, body, "/detailed").content.split(b"\r\n", 4)[3])

    [chunk] = details["composition_plan"]["chunks"]
    assert chunk == {"text": "[Instrumental]", "duration_ms": 3000, "positive_styles": ["warm piano"]}
    assert details["words_timestamps"] == []


def test_a_plan_without_a_planner_is_instrumental(service: Service) -> None:
    """The prompt is its style, and its sections are as long as asked for and none is longer than ElevenLabs takes."""
    answer = post(service, {"prompt": "warm piano", "music_length_ms": 250_000}, "/plan").json()

    assert answer["positive_global_styles"] == ["warm piano"]
    lengths = [section["duration_ms"] for section in answer["sections"]]
    assert (len(lengths), sum(lengths), max(lengths) <= 120_000) == (3, 250_000, True)
    assert post(service, {"composition_plan": {**answer, "sections": answer["sections"][:1]}}).status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({**PROMPT, "music_length_ms": 700_000}, "music_length_ms: must be less than or equal to 600000"),
        ({**PROMPT, "composition_plan": PLAN}, "must have either prompt or composition_plan"),
        ({}, "must have either prompt or composition_plan"),
        ({"prompt": " "}, "prompt: must not be blank"),
        ({**PROMPT, "model_id": "music_v9"}, "model_id: must be a served model"),
        ({**PROMPT, "sign_with_c2pa": True}, "sign_with_c2pa: must be left out: Sophia does not sign songs"),
        ({**PROMPT, "with_waveform_visual": True}, "with_waveform_visual: must be left out"),
        ({**PROMPT, "finetune_id": "mine"}, "finetune_id"),
        ({**PROMPT, "lyrcs": "x"}, "lyrcs: is not a known field"),
        ({"composition_plan": PLAN, "force_instrumental": True}, "with a prompt only"),
        ({"composition_plan": {**PLAN, "sections": []}}, "composition_plan: must have either sections or chunks"),
        ({"composition_plan": {**PLAN, "positive_global_styles": []}}, "which say what the music is like"),
        (
            {"composition_plan": {**PLAN, "sections": [{**PLAN["sections"][0], "source_from": {"song_id": "x"}}]}},
            "composition_plan.sections.0.source_from: must be left out",
        ),
        (
            {"composition_plan": {**PLAN, "sections": [{**PLAN["sections"][0], "duration_ms": 400_000}] * 2}},
            "composition_plan: must be 600000 ms long at most, but is 800000 ms long",
        ),
        ({"composition_plan": PLAN, "with_timestamps": True}, "with_timestamps: needs a model that can tell"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_the_clients_own_names(service: Service, body: Any, says: str) -> None:
    """An error is 422 in ElevenLabs' shape, and names the field as the client does."""
    answer = post(service, body)

    assert answer.status_code == 422
    assert says in message(answer)


def test_what_sophia_does_not_have_is_refused(service: Service) -> None:
    """Formats that it cannot write, requests that leave no trace, plans from plans, and unknown routes."""
    answers = [
        post(service, PROMPT, output_format="pcm_44100"),
        post(service, PROMPT, enable_logging="false"),
        post(service, {"prompt": "x", "source_composition_plan": PLAN}, "/plan"),
        post(service, {}, "/upload"),
    ]

    assert [answer.status_code for answer in answers] == [422, 422, 422, 404]
    fields = ["output_format: must be 'auto', ", "enable_logging: ", "source_composition_plan: ", "There is no POST "]
    for answer, starts in zip(answers, fields, strict=True):
        assert message(answer).startswith(starts)


def test_who_leaves_cancels_the_song(service: Service) -> None:
    """A caller who disconnects has its job cancelled after the grace."""
    body = {**PROMPT, "model_id": "asleep"}

    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/elevenlabs/v1/music", json=body, timeout=0.5)

    [job] = service.client.get("/v1/jobs", params={"model": "asleep"}).json()["jobs"]
    eventually(lambda: service.job(job["id"])["state"] == "cancelled")


def test_a_key_is_needed_in_its_header(tmp_path: Path) -> None:
    """A wrong key in xi-api-key gets ElevenLabs' own error, and over a limit 429."""
    with running(tmp_path, workers=0, queue={"max_owner_jobs": 1}) as service:
        key = service.store.keys.create("studio")
        eventually(lambda: service.client.get("/v1/jobs").status_code == 401)
        service.client.headers["xi-api-key"] = "wrong"
        wrong = post(service, PROMPT)
        service.client.headers["xi-api-key"] = key
        service.submit()
        full = post(service, PROMPT)

        assert (wrong.status_code, wrong.json()["detail"]["status"]) == (401, "invalid_api_key")
        assert (full.status_code, full.json()["detail"]["status"]) == (429, "quota_exceeded")


def test_a_planner_writes_the_plan(tmp_path: Path) -> None:
    """With a planner, a plan has the caption, tempo and key that it chooses for the prompt, and becomes a song."""
    model = simulated(planner={"source": "simulated"}, simulated={"step_s": 0.001, "plan_s": 0.01})
    with running(tmp_path, {"ace-step": model}) as service:
        plan = post(service, {"prompt": "a sad song", "music_length_ms": 9000}, "/plan").json()
        made = post(service, {"composition_plan": plan})

        assert plan["positive_global_styles"][0] == "a sad song"
        assert plan["positive_global_styles"][1].endswith(" bpm")
        assert sum(section["duration_ms"] for section in plan["sections"]) == 9000
        assert request_of(service, made)["duration"] == 9

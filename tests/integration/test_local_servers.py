"""The routes of LocalAI, Lemonade, vLLM-Omni and OmniRoute that answer with a song."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.running import Service, running, simulated
from tests.support.songs import heard

SOUND = "/v1/sound-generation"
TTS = "/tts"
LEMONADE = "/v1/audio/generations"
VLLM = "/v1/audio/generate"
OMNIROUTE = "/v1/music/generations"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one model."""
    with running(tmp_path_factory.mktemp("local"), {"ace-step": simulated(step_s=0.001)}) as service:
        yield service


def latest(service: Service) -> dict[str, Any]:
    """The newest job."""
    return dict(service.client.get("/v1/jobs").json()["jobs"][0])


@pytest.mark.parametrize(
    ("path", "body", "made"),
    [
        (SOUND, {"model_id": "ace-step", "text": "rain", "duration_seconds": 2.0}, {"prompt": "rain", "lyrics": ""}),
        (
            SOUND,
            {"caption": "pop", "lyrics": "la", "bpm": 120, "keyscale": "C major", "language": "de", "timesignature": "3",
             "duration_seconds": 2, "think": False, "do_sample": True},
            {"prompt": "pop", "lyrics": "la", "bpm": 120, "keyscale": "C major", "vocal_language": "de", "timesignature": "3"},
        ),
        (TTS, {"model": "ace-step", "input": "rain", "language": "fr", "params": {"duration": 2}}, {"vocal_language": "fr"}),
        (
            LEMONADE,
            {"model": "ace-step", "prompt": "rain", "lyrics": "", "vocal_language": "en", "duration": 2, "steps": 9, "cfg": 3.5,
             "seed": 5, "response_format": "wav"},
            {"prompt": "rain", "steps": 9, "guidance_scale": 3.5, "seed": 5},
        ),
        (f"/api{LEMONADE}", {"model": "ace-step", "prompt": "rain", "duration": 2}, {"prompt": "rain"}),
        (
            VLLM,
            {"input": "rain", "audio_length": 2, "audio_start": 0, "speed": 1.0, "negative_prompt": "", "guidance_scale": 2,
             "num_inference_steps": 4, "seed": 6},
            {"prompt": "rain", "guidance_scale": 2, "steps": 4, "seed": 6},
        ),
    ],
)  # fmt: skip
def test_the_answer_is_a_wav_file(service: Service, path: str, body: dict[str, Any], made: dict[str, Any]) -> None:
    """Each route takes its own names of the fields, and answers with the song as a WAV file that has a file name."""
    answer = service.client.post(path, json=body)

    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav"), answer.text
    assert heard(answer.content) == (2.0, False)
    assert ".wav" in answer.headers["content-disposition"]
    assert "x-ignored-fields" not in answer.headers
    request = latest(service)["request"]
    assert {name: request[name] for name in made} == made


def test_another_format_may_be_asked_for(service: Service) -> None:
    """`response_format` decides the file's format."""
    answer = service.client.post(VLLM, json={"input": "rain", "audio_length": 2, "response_format": "flac"})

    assert answer.headers["content-type"] == "audio/flac"


def test_omniroute_gets_json_with_all_songs(service: Service) -> None:
    """The answer has each song as base64; tags are added to the prompt."""
    body = {
        "model": "sophia/ace-step",
        "prompt": "rain",
        "tags": "lofi, calm",
        "title": "Wet",
        "sample_count": 2,
        "duration": 2,
    }

    answer = service.client.post(OMNIROUTE, json=body)

    songs = answer.json()["data"]
    assert [heard(base64.b64decode(song["b64_json"])) for song in songs] == [(2.0, False)] * 2
    assert [song["format"] for song in songs] == ["mp3", "mp3"]
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert latest(service)["request"]["prompt"] == "rain, lofi, calm"


@pytest.mark.parametrize(
    ("path", "body", "ignored"),
    [
        (SOUND, {"text": "x", "duration_seconds": 1, "prompt_influence": 0.7}, "prompt_influence"),
        (SOUND, {"text": "x", "duration_seconds": 1, "do_sample": False}, "do_sample"),
        (SOUND, {"text": "x", "duration_seconds": 1, "instrumental": True, "lyrics": "la"}, "lyrics"),
        (TTS, {"input": "x", "duration": 1, "backend": "ace"}, "backend"),
        (
            VLLM,
            {"input": "x", "audio_length": 1, "negative_prompt": "noise", "audio_start": 3},
            "negative_prompt, audio_start",
        ),
        (OMNIROUTE, {"prompt": "x", "duration": 1, "negative_prompt": "noise"}, "negative_prompt"),
    ],
)
def test_what_cannot_be_honoured_is_reported(service: Service, path: str, body: dict[str, Any], ignored: str) -> None:
    """Fields without an effect are named in a header of the answer and in a warning of the job."""
    answer = service.client.post(path, json=body)

    assert (answer.status_code, answer.headers["x-ignored-fields"]) == (200, ignored)
    assert latest(service)["warnings"][0].endswith(f"honoured: {ignored}.")


def test_omniroutes_songs_have_ten_seconds(service: Service) -> None:
    """Its songs have ten seconds unless told otherwise, and tags alone are a prompt."""
    service.client.post(OMNIROUTE, json={"tags": "lofi"})

    assert (latest(service)["request"]["prompt"], latest(service)["request"]["duration"]) == ("lofi", 10)


def test_an_instrumental_is_not_sung(service: Service) -> None:
    """`instrumental` takes the place of lyrics."""
    service.client.post(SOUND, json={"text": "x", "duration_seconds": 1, "instrumental": "true"})

    assert latest(service)["request"]["lyrics"] == "[Instrumental]"


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (SOUND, {"text": "x", "model_id": "dead"}, 404, "model_id: must be a served model"),
        (SOUND, {"lyrics": "x"}, 400, "prompt: is required"),
        (SOUND, {"text": "x", "instrumental": "maybe"}, 400, "instrumental: must be true or false"),
        (SOUND, {"text": "x", "caption": "y"}, 400, "caption: means the same as text"),
        (LEMONADE, {"prompt": "x", "response_format": "pcm"}, 400, "response_format: must be 'mp3'"),
        (VLLM, {"input": "x", "speed": 2}, 400, "speed: must be 1"),
        (VLLM, {"input": "x", "audio_length": 0}, 400, "audio_length: must be greater than or equal to 1"),
        (OMNIROUTE, {"prompt": "x", "sample_count": 9}, 400, "sample_count: must be less than or equal to 8"),
        (TTS, {"model": "ace-step"}, 400, "input: is required"),
    ],
)
def test_bad_input_is_refused_by_the_clients_own_names(
    service: Service, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    """An error has OpenAI's shape, and names the field as the client does."""
    answer: httpx.Response = service.client.post(path, json=body)

    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]

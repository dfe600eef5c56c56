"""Chat completions with songs over plain HTTP; test_openai_package.py has the real clients."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.api.compat.chat import stream
from serve_app.api.compat.chat.messages import ONLY_LYRICS, words_of
from tests.support.helpers import eventually
from tests.support.leaving import leave
from tests.support.recordings import recording
from tests.support.running import Service, running, simulated
from tests.support.songs import heard

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a model that has a worker and one that has none."""
    models = {
        "ace-step": simulated(),
        "asleep": simulated(workers=0),
    }
    with running(tmp_path_factory.mktemp("chat"), models, api={"leave_grace_s": 0.1}) as service:
        yield service


def body_of(content: Any = "warm piano", **fields: Any) -> dict[str, Any]:
    """A chat that asks for a song of two seconds in FLAC."""
    config = {"duration": 2, "format": "flac", **fields.pop("audio_config", {})}
    return {"messages": [{"role": "user", "content": content}], "audio_config": config, **fields}


def chat(service: Service, content: Any = "warm piano", **fields: Any) -> httpx.Response:
    return service.client.post(PATH, json=body_of(content, **fields))


def song_in(url: str) -> bytes:
    """The file in a data URL."""
    return base64.b64decode(url.partition(";base64,")[2], validate=True)


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_the_answer_has_the_songs_as_data_urls(service: Service) -> None:
    """ACE-Step's shape: a list with an entry for each song, the metadata as Markdown, and the whole JSON has its length."""
    answer = chat(service, batch_size=2, seed="7", bpm=120, model="acemusic/ace-step")

    found = answer.json()
    [choice] = found["choices"]
    urls = [entry["audio_url"]["url"] for entry in choice["message"]["audio"]]
    assert [url.partition(",")[0] for url in urls] == ["data:audio/flac;base64"] * 2
    assert [heard(song_in(url)) for url in urls] == [(2.0, False)] * 2
    assert (choice["finish_reason"], found["model"], found["object"]) == ("stop", "ace-step", "chat.completion")
    assert choice["message"]["content"].startswith(
        "## Metadata\n**Caption:** warm piano\n**BPM:** 120\n**Duration:** 2s\n"
    )
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_wav_has_the_header_that_the_comfyui_node_reads(service: Service) -> None:
    """A WAV file has 16-bit samples and format tag 1, not EXTENSIBLE."""
    answer = chat(service, audio_config={"format": "wav"})

    wav = song_in(answer.json()["choices"][0]["message"]["audio"][0]["audio_url"]["url"])
    header = wav[wav.index(b"fmt ") + 8 :]
    assert (int.from_bytes(header[:2], "little"), int.from_bytes(header[14:16], "little")) == (1, 16)


def test_openais_shape_has_a_choice_for_each_song(service: Service) -> None:
    """With the field `audio`, each song is base64 in a choice of its own, with its lyrics as the transcript."""
    body = {"messages": [{"role": "user", "content": "pop\nLyrics:\nla la"}], "modalities": ["text", "audio"], "n": 2}

    answer = service.client.post(PATH, json={**body, "audio": {"voice": "alloy", "format": "flac"}, "duration": 2})

    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert [heard(base64.b64decode(choice["message"]["audio"]["data"])) for choice in choices] == [(2.0, False)] * 2
    assert {choice["message"]["audio"]["transcript"] for choice in choices} == {"la la"}
    assert all(choice["message"]["audio"]["expires_at"] > answer.json()["created"] for choice in choices)
    assert "honoured: voice" in choices[0]["message"]["content"]


def test_a_stream_has_dots_until_its_songs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream begins with the role, has a dot at times while the song is made, then the metadata, the songs and the end."""
    monkeypatch.setattr(stream, "_DOT_S", 0.05)

    answer = chat(service, stream=True, inference_steps=50)

    first, *middle, described, songs, last = [event["choices"][0] for event in events_of(answer)]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert first["delta"]["role"] == "assistant"
    assert len(middle) >= 2
    assert all(choice["delta"] == {"content": "."} for choice in middle)
    assert described["delta"]["content"].startswith("## Metadata")
    assert heard(song_in(songs["delta"]["audio"][0]["audio_url"]["url"])) == (2.0, False)
    assert last["finish_reason"] == "stop"


def test_each_piece_of_a_streamed_song_can_be_decoded_alone(service: Service) -> None:
    """In OpenAI's shape, a long file comes in several pieces of base64, which together are the file."""
    body = {**body_of(stream=True, audio_config={"duration": 12, "format": "wav"}), "audio": {"voice": "default"}}

    answer = service.client.post(PATH, json=body)

    deltas = [event["choices"][0]["delta"].get("audio", {}) for event in events_of(answer)]
    pieces = [base64.b64decode(delta["data"], validate=True) for delta in deltas if "data" in delta]
    assert len(pieces) >= 2
    assert heard(b"".join(pieces)) == (12.0, False)


def test_a_failure_after_the_start_ends_the_stream_with_an_error(service: Service) -> None:
    """A job that is cancelled while its song is waited for is told in the stream, which ends with the reason `error`."""
    with service.client.stream("POST", PATH, json=body_of("to cancel", stream=True, model="asleep")) as answer:
        lines = answer.iter_lines()
        next(lines)
        [job] = [
            job for job in service.client.get("/v1/jobs").json()["jobs"] if job["request"]["prompt"] == "to cancel"
        ]
        service.client.post(f"/v1/jobs/{job['id']}/cancel")
        *_, said, end, done = [line.removeprefix("data: ") for line in lines if line]

    assert "was cancelled" in json.loads(said)["choices"][0]["delta"]["content"]
    assert (json.loads(end)["choices"][0]["finish_reason"], done) == ("error", "[DONE]")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_caller_who_leaves_cancels_the_job(service: Service, streamed: bool) -> None:
    """Who hangs up gets no song made, in a stream as well."""
    prompt = f"left {streamed}"
    job = leave(service, PATH, body_of(prompt, stream=streamed, model="asleep"), prompt)

    eventually(lambda: service.job(job)["state"] == "cancelled")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("content", "fields", "status", "says"),
    [
        ("x", {"audio_config": {"duration": 900}}, 400, "audio_config.duration: must be less than or equal to 600"),
        ("x", {"audio_config": {"format": "pcm16"}}, 400, "audio_config.format: must be 'mp3'"),
        ("x", {"model": "openai/gpt"}, 404, "model: must be a served model"),
        ("x", {"bpm": 1}, 400, "bpm: must be greater than or equal to 30"),
        ("", {}, 400, "messages: must"),
        (" ", {}, 400, "messages: must"),
        (7, {}, 400, "messages: must have text, or parts"),
        ([{"type": "image_url"}], {}, 400, "messages: must have text, or parts"),
        ([{"type": "input_audio", "input_audio": {}}], {}, 400, "messages: must have `input_audio`"),
        ([{"type": "input_audio", "input_audio": {"data": "?"}}], {}, 400, "reference: must have the file as base64"),
        ("x" * 30_000, {}, 400, "messages: must have at most 24000 characters"),
        ("x", {"audio_config": []}, 200, ""),
        ("x", {"audio_config": 7}, 400, "audio_config: must be an object"),
        ("x", {"sample_mode": "maybe"}, 400, "sample_mode: must be true or false"),
        ("x", {"task_type": "cover"}, 400, "source: is required"),
    ],
)
def test_bad_input_is_an_error_before_any_stream(
    service: Service, content: Any, fields: dict[str, Any], status: int, says: str, streamed: bool
) -> None:
    """An error has its status also if a stream was asked for, and its text in OpenAI's place and in ACE-Step's."""
    given = {**body_of(content), **fields, "stream": streamed}

    answer = service.client.post(PATH, json={**given, "duration": 2} if status == 200 else given)

    assert answer.status_code == status
    if status != 200:
        assert says in answer.json()["error"]["message"]
        assert answer.json()["detail"] == answer.json()["error"]["message"]


@pytest.mark.parametrize("messages", [None, [], "x", [{"role": "system", "content": "x"}], ["x"]])
def test_a_chat_without_a_users_message_is_refused(service: Service, messages: Any) -> None:
    """There must be a message whose role is user."""
    answer = service.client.post(PATH, json={"messages": messages})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


def test_a_body_that_is_no_json_object_is_refused(service: Service) -> None:
    """Broken JSON and other values are errors in the family's shape."""
    answers = [service.client.post(PATH, content=content) for content in (b"{", b"[]", b"[" * 100_000)]

    assert [answer.status_code for answer in answers] == [400, 400, 400]
    assert all(answer.json()["detail"] for answer in answers)


def test_what_cannot_be_honoured_is_told(service: Service) -> None:
    """Unknown fields pass; those that ask for something, and planning without a planner, are named in the answer and the job."""
    answer = chat(service, thinking=True, sample_mode=True, use_cot_metas=True, user="", temperature=0.85, magic=3)

    content = answer.json()["choices"][0]["message"]["content"]
    assert "honoured: use_cot_metas, magic, thinking, sample_mode." in content


def test_an_instrumental_is_not_sung(service: Service) -> None:
    """`instrumental` takes the place of lyrics."""
    job = chat(service, audio_config={"instrumental": True}).json()["id"][9:]

    assert service.job(job)["request"]["lyrics"] == "[Instrumental]"


def test_values_that_leave_something_open(service: Service) -> None:
    """A length of 0 or less follows the lyrics, an end of -1 is the end, and of seeds that follow each other the first counts."""
    config = {"duration": -1, "format": "mp3"}
    job = chat(service, lyrics="[verse]\nla", audio_config=config, seed="5,6", repainting_end=-1).json()["id"][9:]

    request = service.job(job)["request"]
    assert (request["lyrics"], request["seed"]) == ("[verse]\nla", 5)
    assert 10 <= request["duration"] < 60
    assert not any("seed" in warning for warning in service.job(job)["warnings"])


def test_seeds_that_do_not_follow_each_other_are_told(service: Service) -> None:
    """Further songs have the next seeds, so other seeds cannot be honoured."""
    job = chat(service, seed="5,9", batch_size=2).json()["id"][9:]

    assert "honoured: seed." in service.job(job)["warnings"][0]


def test_a_recording_in_a_message_is_the_reference(service: Service) -> None:
    """A file as `input_audio` becomes an input, which the song imitates; for a cover it is the source."""
    data = base64.b64encode(recording("flac")).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    content = [{"type": "text", "text": "warm piano"}, part]

    imitated = chat(service, content).json()["id"][9:]
    covered = chat(service, content, task_type="cover").json()["id"][9:]
    too_many = chat(service, [*content, part])

    reference = service.job(imitated)["request"]["reference"]
    assert reference.startswith("input:")
    assert service.job(covered)["request"]["source"] == reference
    assert "at most 1 `input_audio`" in too_many.json()["detail"]


@pytest.mark.parametrize(
    ("text", "is_caption", "caption", "lyrics"),
    [
        ("warm piano", False, "warm piano", None),
        ("<prompt>pop</prompt><lyrics>la\nla</lyrics>", False, "pop", "la\nla"),
        ("<lyrics>la</lyrics>", True, ONLY_LYRICS, "la"),
        ("<prompt>pop", False, "pop", None),
        ("pop, fast\n[verse]\nla la", False, "pop, fast", "[verse]\nla la"),
        ("pop, fast\n[verse]\nla la", True, "pop, fast\n[verse]\nla la", None),
        ("pop\n\nLyrics: la\nlo", False, "pop", "la\nlo"),
        ("one\ntwo\nthree\nfour", False, ONLY_LYRICS, "one\ntwo\nthree\nfour"),
        ("one\ntwo\nthree", False, "one\ntwo\nthree", None),
        (f"one\ntwo\nthree\n{'x' * 100}", False, f"one\ntwo\nthree\n{'x' * 100}", None),
    ],
)
def test_what_a_text_says(text: str, is_caption: bool, caption: str, lyrics: str | None) -> None:
    """Tags, headings, section tags and short lines tell lyrics from a description."""
    assert words_of(text, is_caption=is_caption) == (caption, lyrics)


@pytest.mark.parametrize(
    ("wish", "route", "fields"),
    [("sample_mode", "/v1/sample", {}), ("use_format", "/v1/format", {"lyrics": "[verse]\nla la"})],
)
def test_a_planner_finds_the_words(tmp_path: Path, wish: str, route: str, fields: dict[str, Any]) -> None:
    """With `sample_mode` a planner makes up the song, with `use_format` it writes better words; the song has what it wrote."""
    planned = simulated(planner={"source": "simulated"}, simulated={"step_s": 0.01, "plan_s": 0.01})
    with running(tmp_path, {"ace-step": planned}) as service:
        written = service.client.post(route, json={"prompt": "a sad song", **fields}).json()
        answer = chat(service, "a sad song", **{wish: True}, **fields)

        request = service.job(answer.json()["id"][9:])["request"]
        assert written["bpm"] is not None
        for name in ("bpm", "keyscale", "timesignature", "lyrics"):
            assert request[name] == written[name]
        assert "honoured" not in answer.json()["choices"][0]["message"]["content"]

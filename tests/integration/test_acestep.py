"""ACE-Step's own API server as its clients use it; test_acestep_package.py has them in JavaScript."""

import asyncio
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import soundfile
from fastapi.routing import APIRoute

from serve_app.api import submission, waiting_calls
from serve_app.api.compat.acestep import lora, server, tasks, writing
from serve_app.api.compat.acestep import songs as songs_of_calls
from serve_app.api.compat.acestep.fields import fields_of
from serve_app.errors import BadAdapter
from serve_app.store import Store
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.queue import claim
from tests.support.recordings import recording
from tests.support.running import Service, running, simulated

JSON = dict[str, Any]
SITE = "http://localhost:5173"
"""Where the browser DAW's pages come from."""
SONG: JSON = {
    "prompt": "warm piano",
    "lyrics": "[verse]\nla la la",
    "thinking": False,
    "audio_duration": 2,
    "inference_steps": 4,
    "batch_size": 1,
    "audio_format": "flac",
    "task_type": "text2music",
    "use_random_seed": False,
    "seed": 7,
}
"""What small programs send."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without keys, with a model that has a planner and a worker, and one that has neither."""
    planned = simulated(planner={"source": "simulated"}, simulated={"step_s": 0.001, "plan_s": 0.01})
    adapters = {"violin": {"source": "/adapters/violin.safetensors"}}
    models = {"ace-step": planned, "asleep": simulated(workers=0, adapters=adapters)}
    with running(tmp_path_factory.mktemp("open"), models, api={"cors_origins": [SITE]}) as service:
        yield service


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that needs a key, which its client does not send."""
    with running(tmp_path_factory.mktemp("locked"), auth={"operators": ["studio"]}) as service:
        service.key = service.store.keys.create("studio")  # type: ignore[attr-defined]
        eventually(lambda: service.client.get("/v1/stats").status_code == 401)
        yield service


def post(service: Service, path: str, body: Any = None, **options: Any) -> httpx.Response:
    return service.client.post(path, json={} if body is None else body, **options)


def data_of(answer: httpx.Response) -> Any:
    """What an answer's envelope has."""
    assert answer.status_code == 200, answer.text
    envelope = answer.json()
    assert (envelope["code"], envelope["error"]) == (200, None)
    assert envelope["timestamp"] > 1_700_000_000_000
    return envelope["data"]


def release(service: Service, **fields: Any) -> str:
    task = data_of(post(service, "/release_task", {**SONG, **fields}))
    assert task["status"] == "queued"
    assert task["queue_position"] >= 1
    return str(task["task_id"])


def request_of(service: Service, task: str) -> JSON:
    return dict(service.job(task)["request"])


def understood(service: Service, **fields: Any) -> JSON:
    """The request of a song that nobody makes."""
    return request_of(service, release(service, **{"model": "asleep", **fields}))


def query(service: Service, *tasks: str) -> list[JSON]:
    found: list[JSON] = data_of(post(service, "/query_result", {"task_id_list": list(tasks)}))
    return found


def songs(service: Service, task: str) -> list[JSON]:
    """The songs of a task, once it is done."""
    row = eventually(lambda: found if (found := query(service, task)[0])["status"] else None)
    assert row["status"] == 1, row
    return list(json.loads(row["result"]))


def ignored(answer: httpx.Response) -> dict[str, str]:
    data_of(answer)
    extra = answer.json()["extra"] or {"ignored": []}
    return {one["field"]: one["reason"] for one in extra["ignored"]}


def seconds_of(data: bytes) -> float:
    """The length of a file, which must not be silent."""
    samples, rate = soundfile.read(io.BytesIO(data))
    assert abs(samples).max() > 0.01
    return float(round(len(samples) / rate, 1))


def test_a_scripts_calls_make_a_song(service: Service) -> None:
    """/release_task, /query_result until it is done, and the file that it names, opened without a header."""
    task = release(service)

    [song] = songs(service, task)

    assert song["file"].startswith("/v1/audio?path=")
    assert song["file"].endswith(".flac")
    answer = httpx.get(service.url + song["file"])
    assert answer.headers["content-type"] == "audio/flac"
    assert seconds_of(answer.content) == 2
    assert {key: song[key] for key in ("status", "seed_value", "dit_model", "progress", "prompt")} == {
        "status": 1, "seed_value": "7", "dit_model": "ace-step", "progress": 1.0, "prompt": "warm piano",
    }  # fmt: skip
    assert song["metas"] == {
        "bpm": "N/A", "duration": 2.0, "genres": "N/A", "keyscale": "N/A", "timesignature": "N/A", "prompt": "warm piano",
        "lyrics": "[verse]\nla la la",
    }  # fmt: skip
    assert set(song) == {
        "file", "wave", "status", "create_time", "env", "prompt", "lyrics", "metas", "generation_info", "seed_value",
        "lm_model", "dit_model", "progress", "stage", "error",
    }  # fmt: skip


def test_the_browser_daws_calls_make_a_song_and_a_cover(service: Service) -> None:
    """Every value is text in a multipart body; a source of text2music is ignored; an earlier song's path is a source."""
    client = httpx.Client(base_url=service.url, headers={"Origin": SITE})
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in SONG.items()}
    files = {"src_audio": ("silence.wav", recording("wav"), "audio/wav")}
    with client:
        preflight = client.options(
            "/release_task",
            headers={"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"},
        )
        answer = client.post("/release_task", data=texts, files=files)
        [song] = songs(service, answer.json()["data"]["task_id"])
        path = parse_qs(urlsplit(song["file"]).query)["path"][0]
        cover = client.post("/release_task", data={**texts, "task_type": "cover", "src_audio_path": path}, files={})

    assert preflight.headers["access-control-allow-origin"] == SITE
    assert answer.headers["access-control-allow-origin"] == SITE
    assert ignored(answer) == {"src_audio": "task_type 'text2music' has no source"}
    assert path[0] not in "/\\"
    assert request_of(service, data_of(cover)["task_id"])["source"] == f"job:{data_of(answer)['task_id']}/0"


def test_files_of_a_form_are_source_and_reference(service: Service) -> None:
    """The parts of a multipart body become inputs, under both of their names."""
    texts = {
        "prompt": "x",
        "task_type": "repaint",
        "repainting_start": "0.5",
        "repainting_end": "-1",
        "model": "asleep",
    }
    wav = ("a.wav", recording("wav"), "audio/wav")
    flac = ("b.flac", recording("flac"), "audio/flac")
    answer = service.client.post("/release_task", data=texts, files={"ctx_audio": wav, "reference_audio": flac})
    nothing = service.client.post("/release_task", data=texts, files={"src_audio": ("", b"", "audio/wav")})
    text = service.client.post("/release_task", data=texts, files={"src_audio": ("a.wav", b"no audio", "audio/wav")})

    request = request_of(service, data_of(answer)["task_id"])
    assert (request["source"][:6], request["reference"][:6]) == ("input:", "input:")
    assert request["source"] != request["reference"]
    assert (request["repaint_start"], request["repaint_end"], request["duration"]) == (0.5, None, 2)
    assert [(one.status_code, one.json()["error"].partition(":")[0]) for one in (nothing, text)] == [
        (400, "src_audio"), (400, "src_audio"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "request_has"),
    [
        ({"prompt": None, "caption": "flute"}, {"prompt": "flute"}),
        ({"param_obj": {"bpm": "120", "key": "Am"}}, {"bpm": 120, "keyscale": "A minor"}),
        ({"metas": '{"timesignature": "3/4", "language": "de"}'}, {"timesignature": "3", "vocal_language": "de"}),
        ({"userMetadata": {"keyScale": "F# minor"}}, {"keyscale": "F# minor"}),
        ({"bpm": 90, "param_obj": {"bpm": 100}}, {"bpm": 90}),
        ({"bpm": "", "param_obj": {"bpm": 100}}, {"bpm": None}),
        ({"lyrics": "[inst]"}, {"lyrics": ""}),
        ({"audioDuration": 5, "audio_duration": None}, {"duration": 5}),
        ({"audio_duration": 0}, {"duration": 24.0, "auto_duration": False}),
        ({"batch_size": None}, {"variations": 2}),
        ({"modelName": "acestep/asleep", "model": None}, {"model": "asleep"}),
        ({"seed": "3,4", "batch_size": 2}, {"seed": 3}),
        ({"seed": "-1"}, {}),
        ({"infer_method": "sde"}, {"sampler": "sde"}),
        ({"infer_method": "ode", "sampler_mode": "heun"}, {"sampler": "heun"}),
        ({"use_adg": "yes"}, {"guidance_mode": "adg"}),
        ({"timesteps": "1.0,0.5,0"}, {"timesteps": [1.0, 0.5]}),
        ({"cfg_interval_start": 0.2, "cfg_interval_end": "0.8"}, {"cfg_interval_start": 0.2, "cfg_interval_end": 0.8}),
        ({"dcw_enabled": False, "dcw_scaler": 0.1}, {"dcw": False, "dcw_strength": 0.1}),
        ({"audio_format": "mp4"}, {"format": "flac"}),
        ({"audio_code_string": "<|audio_code_1|><|audio_code_2|>"}, {"audio_codes": [1, 2]}),
        ({"use_cot_caption": False, "use_cot_language": "no"}, {"plan_caption": False, "plan_language": False}),
        ({"lm_temperature": "0.7", "lm_cfg_scale": 2.5}, {"plan_temperature": 0.7, "plan_guidance": 2.5}),
        ({"lm_negative_prompt": "NO USER INPUT"}, {"plan_negative_prompt": None}),
        ({"vocal_language": "unknown"}, {"vocal_language": "unknown", "plan_language": True}),
    ],
)  # fmt: skip
def test_fields_are_understood(service: Service, fields: JSON, request_has: JSON) -> None:
    """Every alias, level and spelling leads to Sophia's field."""
    request = understood(service, **fields)

    assert {name: request[name] for name in request_has} == request_has


def test_a_source_task_has_its_fields(service: Service) -> None:
    """A part that starts before the source or ends after it adds to it; tracks may be text; a track can be the prompt."""
    source = f"job:{release(service)}/0"
    service.ended(source[4:40])
    files = {"model": "asleep", "src_audio_path": source, "audio_duration": None}

    extended = understood(service, **{**files, "task_type": "repaint", "repainting_start": -1, "repainting_end": 1})
    longer = [
        understood(service, **files, task_type="repaint", repainting_end=3.5, **start)
        for start in ({"repainting_start": 1}, {"repainting_start": 2}, {})
    ]
    track = {**files, "task_type": "extract", "track_name": "Backing Vocals", "prompt": ""}
    tracks = {**files, "task_type": "complete", "track_classes": "drums | bass", "prompt": ""}

    assert [extended[name] for name in ("extend_before", "repaint_start", "repaint_end", "duration")] == [1, 0, 1, 3]
    assert [[one[name] for name in ("extend_after", "repaint_start", "repaint_end", "duration")] for one in longer] == [
        [1.5, 1, None, 3.5], [1.5, None, None, 3.5], [1.5, 0, None, 3.5],
    ]  # fmt: skip
    assert [understood(service, **one)["prompt"] for one in (track, tracks)] == ["backing vocals", "drums, bass"]


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ({"thinking": True}, {"thinking": "the model has no planner"}),
        ({"use_format": True}, {"use_format": "the model has no planner, so prompt and lyrics are used as they are"}),
        ({"bpm": "fast"}, {"bpm": "it cannot be read"}),
        ({"caption": "other"}, {"caption": "prompt means the same and counts"}),
        ({"latent_shift": 0.1}, {"latent_shift": "Sophia has nothing that it could set"}),
        ({"latent_shift": "0.0", "lm_backend": "pt", "use_tiled_decode": True, "constrained_decoding": "true"}, {}),
        ({"somethingElse": 1, "empty": ""}, {"somethingElse": "it is not a field that Sophia knows"}),
        ({"repaint_mode": "balanced", "repainting_start": 0, "repainting_end": -1, "track_name": ""}, {}),
        ({"repaint_mode": "aggressive"}, {"repaint_mode": "task_type 'text2music' does not use it"}),
        ({"seed": "3,9", "batch_size": 2}, {"seed": "only its first seed counts, and each further song has the next one"}),
        ({"audio_format": "mp4"}, {"audio_format": "it is no format here, so the file is flac"}),
    ],
)  # fmt: skip
def test_what_is_not_done_is_said(service: Service, fields: JSON, reasons: dict[str, str]) -> None:
    """What a client asks for and does not get is in `extra` and in the job's warnings; values without effect are not."""
    answer = post(service, "/release_task", {**SONG, "model": "asleep", **fields})

    assert ignored(answer) == reasons
    warnings = service.job(data_of(answer)["task_id"])["warnings"]
    assert all(f"{field} is ignored: {reason}." in warnings for field, reason in reasons.items())


def test_a_list_of_ignored_fields_is_bounded() -> None:
    """A body with very many unknown fields has a short list of them."""
    fields = fields_of({f"x{number}": number for number in range(1000)})

    fields.ignore_the_rest("it is unknown")

    assert len(fields.ignored) == 30


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task_type": "stem_separation"}, "task_type: must be"),
        ({"model": "none"}, "model: must be a served model: 'ace-step' or 'asleep'"),
        ({"model": ["ace-step"]}, "model: must be a served model"),
        ({"audio_duration": 900}, "audio_duration: must be less than or equal to 600"),
        ({"batch_size": 9}, "batch_size: must be less than or equal to 8"),
        ({"prompt": " "}, "prompt: is required"),
        ({"key_scale": "H dur"}, "key_scale: must be a key"),
        ({"task_type": "cover"}, "src_audio: is required"),
        (
            {"task_type": "cover", "src_audio_path": "/etc/passwd"},
            "src_audio_path: names no recording. Sophia opens no files",
        ),
        ({"reference_audio_path": "C:\\music\\a.wav"}, "send the audio as the part 'reference_audio'"),
        ({"reference_audio_path": "http://[x/v1/audio"}, "reference_audio_path: "),
        ({"analysis_only": True}, "analysis_only: must be false"),
        ({"prompt": {"a": 1}}, "prompt: must be a string"),
        ({"infer_method": "dpm"}, "infer_method: must be"),
    ],
)
def test_bad_input_is_refused_by_the_clients_own_names(service: Service, fields: JSON, says: str) -> None:
    """An error is a real status, with its text where either kind of client reads it."""
    answer = post(service, "/release_task", {**SONG, **fields})

    body = answer.json()
    assert (answer.status_code, body["code"], body["data"]) == (400, 400, None), body
    assert says in body["error"]
    assert body["detail"] == body["error"]


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (urlencode({**SONG, "model": "asleep"}), "application/x-www-form-urlencoded", 200),
        (json.dumps({**SONG, "model": "asleep"}), "application/x-www-form-urlencoded", 200),
        (json.dumps({**SONG, "model": "asleep"}), "application/vnd.music+json; charset=utf-8", 200),
        (json.dumps({**SONG, "model": "asleep"}), "", 200),
        (urlencode({**SONG, "model": "asleep"}), "", 200),
        (json.dumps(SONG), "text/plain", 415),
        ("{", "application/json", 400),
        ("[1]", "application/json", 400),
        ("[" * 100_000, "application/json", 400),
        (b"prompt=%ff", "application/x-www-form-urlencoded", 400),
        ("&".join("a=1" for _ in range(300)), "application/x-www-form-urlencoded", 400),
        ("x", "multipart/form-data", 400),
        ("x" * 2_000_000, "application/json", 413),
    ],
)  # fmt: skip
def test_every_kind_of_body_is_read(service: Service, content: str, media_type: str, status: int) -> None:
    """JSON, forms and bodies without a type; others and broken ones are refused in the envelope."""
    headers = {"content-type": media_type} if media_type else {}
    answer = service.client.post("/release_task", content=content, headers=headers)

    assert answer.status_code == status, answer.text
    assert answer.json()["code"] == status


def test_many_tasks_are_asked_for_in_one_call(service: Service) -> None:
    """The answers are in the order asked, a list may be JSON text, and nobody waits for a task that is unknown."""
    waiting = release(service, model="asleep")
    done = release(service)
    songs(service, done)
    ids = [done, "0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d", waiting, "\x00nonsense"]

    rows = query(service, *ids)
    as_text = service.client.post("/query_result", data={"task_id_list": json.dumps([waiting])})

    assert [(row["task_id"], row["status"]) for row in rows] == list(zip(ids, (1, 2, 0, 2), strict=True))
    [queued] = json.loads(rows[2]["result"])
    assert (queued["file"], queued["status"], queued["progress"], queued["stage"]) == ("", 0, 0.0, "queued")
    assert "Position" in rows[2]["progress_text"]
    assert json.loads(rows[1]["result"])[0]["error"] == "There is no such task"
    assert [row["task_id"] for row in data_of(as_text)] == [waiting]
    for wrong in ({}, {"task_id_list": 7}, {"task_id_list": [7]}, {"task_id_list": ["x"] * 201}):
        assert post(service, "/query_result", wrong).status_code == 400


def test_a_task_without_a_song_says_why(service: Service) -> None:
    """A failed and a cancelled task have status 2 and an error in their result."""
    cancelled = release(service, model="asleep")
    answers = [data_of(post(service, "/cancel_task", {"task_id": cancelled})) for _ in range(2)]
    failed = release(service, model="asleep")
    post_others = [job["id"] for job in service.client.get("/v1/jobs?state=queued&limit=200").json()["jobs"]]
    for other in set(post_others) - {failed}:
        service.client.post(f"/v1/jobs/{other}/cancel")
    service.store.claims.fail(claim(service.store, model="asleep"), BadAdapter("it is broken"))

    rows = query(service, cancelled, failed)

    assert answers == [{"task_id": cancelled, "status": "cancelled"}] * 2
    errors = [json.loads(row["result"])[0]["error"] for row in rows]
    assert [row["status"] for row in rows] == [2, 2]
    assert "was cancelled" in errors[0]
    assert "it is broken" in errors[1]
    assert post(service, "/cancel_task", {"task_id": failed}).status_code == 409
    assert post(service, "/cancel_task", {"task_id": "x"}).status_code == 404


def test_a_call_that_was_not_answered_makes_no_second_song(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hangs up before its answer and sends the same again gets the first call's task; an answered one is over."""
    quick = submission.submit

    async def submit(*given: Any, **options: Any) -> Any:
        result = await quick(*given, **options)
        await asyncio.sleep(0.5)
        return result

    body = {**SONG, "model": "asleep", "prompt": "repeated"}
    with monkeypatch.context() as patched:
        patched.setattr(waiting_calls, "submit", submit)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.url}/release_task", json=body, timeout=0.3)
    second, third = (data_of(post(service, "/release_task", body))["task_id"] for _ in range(2))

    jobs = [
        job["id"]
        for job in service.client.get("/v1/jobs?limit=200").json()["jobs"]
        if job["request"]["prompt"] == "repeated"
    ]
    assert sorted(jobs) == sorted([second, third])


def test_a_planner_plans(service: Service) -> None:
    """`thinking` plans codes; a description becomes a song; `use_format` writes caption and lyrics anew."""
    thought = release(service, thinking="true")
    made_up = release(service, sample_query="a sad song about rain", prompt="", lyrics="", audio_duration=None)
    anywhere = release(service, sample_mode=True, prompt="")
    formatted = release(service, use_format=True)

    assert request_of(service, thought)["thinking"] == "codes"
    assert "rain" in request_of(service, made_up)["prompt"]
    assert request_of(service, anywhere)["prompt"]
    assert request_of(service, formatted)["lyrics"]
    [song] = songs(service, thought)
    assert song["lm_model"]


def test_words_are_written(service: Service) -> None:
    """/format_input and /v1/create_sample answer with the planner's words, each in its own spelling."""
    parameters = json.dumps({"bpm": 92, "key": "C major", "time_signature": "4", "language": "en"})
    formatted = data_of(post(service, "/format_input", {"prompt": "piano", "lyrics": "la", "param_obj": parameters}))
    sample = data_of(post(service, "/v1/create_sample", {"query": "a song about rain", "instrumental": "true"}))

    assert set(formatted) == {
        "caption", "lyrics", "bpm", "key_scale", "time_signature", "duration", "vocal_language",
    }  # fmt: skip
    assert (formatted["bpm"], formatted["key_scale"], formatted["time_signature"]) == (92, "C major", "4")
    assert set(sample) == {"caption", "lyrics", "bpm", "keyscale", "duration", "timesignature", "vocal_language"}
    assert sample["caption"]


def test_without_a_planner_words_are_refused(service: Service) -> None:
    """As in the original without a language model: 503, for whatever needs one."""
    calls = [
        ("/format_input", {"prompt": "piano", "model": "asleep"}),
        ("/v1/create_sample", {"query": "rain", "model": "asleep"}),
        ("/release_task", {**SONG, "sample_query": "rain", "model": "asleep"}),
    ]
    for path, body in calls:
        answer = post(service, path, body)
        assert (answer.status_code, answer.json()["code"], answer.json()["data"]) == (503, 503, None)
        assert "'asleep' has no planner" in answer.json()["detail"]


def test_ready_made_samples_are_good_requests(service: Service) -> None:
    """A sample in custom mode can be sent as it is, and one in simple mode describes a song."""
    custom = data_of(post(service, "/create_random_sample", {"sample_type": "custom_mode"}))
    simple = data_of(service.client.post("/create_random_sample", data={"sample_type": "simple_mode"}))

    assert ignored(post(service, "/release_task", {**custom, "model": "asleep", "think": None})) == {}
    assert set(simple) == {"description", "instrumental", "vocal_language"}
    assert post(service, "/create_random_sample", {"sample_type": "x"}).status_code == 400


def test_the_server_describes_itself(service: Service) -> None:
    """/health, the inventory and the figures have what plug-ins and the DAW read."""
    health = data_of(service.client.get("/health"))
    inventory = data_of(service.client.get("/v1/model_inventory"))
    stats = data_of(service.client.get("/v1/stats"))

    assert (health["status"], health["service"], health["loaded_model"]) == ("ok", "ACE-Step API", "ace-step")
    assert health["models_initialized"] is True
    assert [(model["name"], model["is_loaded"]) for model in inventory["models"]] == [
        ("ace-step", True),
        ("asleep", True),
    ]
    assert inventory["models"][0]["supported_task_types"][:2] == ["text2music", "cover"]
    assert (inventory["default_model"], inventory["llm_initialized"]) == ("ace-step", True)
    assert stats["jobs"]["total"] >= stats["jobs"]["succeeded"] >= 1
    assert stats["avg_job_seconds"] > 0
    assert stats["queue_maxsize"] == 50_000


def test_models_need_no_loading(service: Service) -> None:
    """/v1/init accepts a served model and refuses others with the served ones; /v1/reinitialize changes nothing."""
    loaded = data_of(post(service, "/v1/init", {"model": "acemusic/asleep", "slot": 2, "init_llm": True}))
    again = data_of(service.client.post("/v1/reinitialize"))
    refused = post(service, "/v1/init", {"model": "acestep-v15-turbo"})

    assert (loaded["loaded_model"], loaded["slot"], loaded["llm_initialized"]) == ("asleep", 2, False)
    assert again["reloaded"] == []
    assert refused.status_code == 400
    assert "'ace-step' or 'asleep'" in refused.json()["error"]


def test_an_adapter_is_loaded_for_later_tasks(service: Service) -> None:
    """The plug-in's five calls: an adapter of the operator plays in later tasks until it is switched off or unloaded."""
    before = data_of(service.client.get("/v1/lora/status"))
    loaded = data_of(post(service, "/v1/lora/load", {"lora_path": "C:\\loras\\violin", "adapter_name": "mine"}))
    scaled = data_of(post(service, "/v1/lora/scale", {"scale": "0.5", "adapter_name": "mine"}))
    unknown = post(service, "/v1/lora/scale", {"scale": 1, "adapter_name": "other"})
    played = understood(service)["lora"]
    other = post(service, "/release_task", SONG)
    off = data_of(post(service, "/v1/lora/toggle", {"use_lora": False}))
    unplayed = understood(service)["lora"]
    unloaded = data_of(service.client.post("/v1/lora/unload"))
    after = data_of(service.client.get("/v1/lora/status"))

    assert before == {
        "lora_loaded": False, "use_lora": False, "lora_scale": 1.0, "adapter_type": None, "scales": {},
        "active_adapter": None, "adapters": [],
    }  # fmt: skip
    assert (loaded["use_lora"], loaded["active_adapter"], loaded["adapters"]) == (True, "mine", ["mine"])
    assert (scaled["lora_scale"], scaled["scales"]) == (0.5, {"mine": 0.5})
    assert unknown.json()["error"].startswith("adapter_name: must be a loaded adapter: 'mine'")
    assert (played, unplayed) == ([{"name": "violin", "scale": 0.5}], [])
    assert ignored(other) == {"lora": "the model 'ace-step' has no such adapter"}
    assert (off["lora_loaded"], off["use_lora"]) == (True, False)
    assert unloaded == {"message": "No adapter is loaded", **before}
    assert after == before


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("load", {"lora_path": "/etc/passwd"}, 400, "lora_path: must be one of the adapters: 'violin'"),
        ("load", {}, 400, "lora_path: must be one of the adapters: 'violin'"),
        ("load", {"lora_path": ["violin"]}, 400, "lora_path: must be one of the adapters: 'violin'"),
        ("load", {"lora_path": "violin", "adapter_name": "x" * 65}, 400, "adapter_name: must be a name"),
        ("scale", {"scale": 2}, 400, "scale: must be a number from 0 to 1"),
        ("scale", {"scale": 1}, 409, "No adapter is loaded"),
        ("nothing", {}, 404, "There is no POST /v1/lora/nothing"),
    ],
)
def test_other_adapters_are_refused(service: Service, path: str, body: JSON, status: int, says: str) -> None:
    """Only names that the operator has listed can be loaded; nothing of a path is opened."""
    answer = post(service, f"/v1/lora/{path}", body)

    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_what_is_not_served_is_told_in_the_envelope(service: Service) -> None:
    """Routes that Sophia has not are 404 with `detail`; probes keep their own errors."""
    transcribe = service.client.post("/v1/transcribe", json={"audio_path": "x"})
    probe = service.client.post("/healthz")

    assert (transcribe.status_code, transcribe.json()["code"]) == (404, 404)
    assert service.client.get("/release_task").json()["code"] == 405
    assert probe.json()["code"] == "method_not_allowed"


def test_a_key_may_be_in_the_header_or_in_the_body(locked: Service) -> None:
    """`ai_token` in each kind of body, and a header with or without `Bearer`, are the same key; anything else is refused."""
    key = locked.key  # type: ignore[attr-defined]
    files = {"reference_audio": ("a.wav", recording("wav"), "audio/wav")}
    accepted = [
        post(locked, "/release_task", {**SONG, "ai_token": key}),
        locked.client.post("/release_task", data={**SONG, "ai_token": key}),
        locked.client.post("/release_task", data={**SONG, "ai_token": key}, files=files),
        post(locked, "/release_task", SONG, headers={"Authorization": f"Bearer {key}"}),
        post(locked, "/release_task", SONG, headers={"Authorization": key}),
        locked.client.get("/v1/stats", headers={"Authorization": key}),
    ]
    refused = [
        post(locked, "/release_task", SONG),
        post(locked, "/release_task", {**SONG, "ai_token": "wrong"}),
        post(locked, "/release_task", {**SONG, "ai_token": key}, headers={"Authorization": "Bearer wrong"}),
        locked.client.post("/release_task", data={"ai_token": key}, files={"src_audio": ("a.wav", bytes(2_000_000))}),
        locked.client.get("/v1/model_inventory"),
        post(locked, "/query_result", {"task_id_list": []}),
    ]

    assert [answer.status_code for answer in accepted] == [200] * 6
    assert all(answer.json()["extra"] is None for answer in accepted)
    assert [answer.status_code for answer in refused] == [401] * 6
    assert locked.client.get("/health").status_code == 200


def test_an_adapter_is_loaded_for_one_key(store: Store) -> None:
    """What one key has set does not concern another, and is gone with the key."""
    for owner in ("one", "two"):
        store.keys.create(owner)
    store.client_settings.change("one", "acestep", lambda settings: {**settings, "on": True})
    store.client_settings.change("one", "acestep", lambda settings: {**settings, "active": "x"})

    assert store.client_settings.get("one", "acestep") == {"on": True, "active": "x"}
    assert store.client_settings.get("two", "acestep") == {}
    store.keys.revoke("one")
    assert store.client_settings.get("one", "acestep") == {}


def test_a_file_opens_without_a_key_but_not_by_guessing(locked: Service) -> None:
    """The address in `file` works in a player that sends no header, in parts too; a changed one does not, nor after deletion."""
    key = {"Authorization": locked.key}  # type: ignore[attr-defined]
    task = data_of(post(locked, "/release_task", {**SONG, "audio_format": "opus"}, headers=key))["task_id"]
    row = eventually(
        lambda: (
            found
            if (found := data_of(post(locked, "/query_result", {"task_id_list": [task]}, headers=key))[0])["status"]
            else None
        )
    )
    address = locked.url + json.loads(row["result"])[0]["file"]

    whole = httpx.get(address)
    part = httpx.get(address, headers={"Range": "bytes=0-9"})
    head = httpx.head(address)
    guessed = httpx.get(f"{locked.url}/v1/audio", params={"path": f"{task}/0/0-open.opus"})
    changed = httpx.get(address.replace("%2F0%2F", "%2F1%2F"))
    outside = httpx.get(f"{locked.url}/v1/audio", params={"path": "/etc/passwd"})
    locked.client.delete(f"/v1/jobs/{task}", headers=key)

    assert address.endswith(".opus")
    assert whole.headers["content-type"] == "audio/ogg; codecs=opus"
    assert seconds_of(whole.content) == 2
    assert (part.status_code, part.content, head.headers["content-length"]) == (
        206,
        whole.content[:10],
        str(len(whole.content)),
    )
    assert [one.status_code for one in (guessed, changed, outside, httpx.get(address))] == [401, 401, 404, 404]


def test_no_body_breaks_a_route(service: Service) -> None:
    """Fields of wrong types and with strange values are understood, ignored or refused; none is a fault of the server."""
    names = [name for field in songs_of_calls._FIELDS for name in field.names] + [
        "task_type", "audio_duration", "repainting_start", "repainting_end", "infer_method", "use_adg", "seed", "audio_format",
        "vocal_language", "global_caption", "use_random_seed", "thinking", "src_audio_path", "src_audio", "param_obj", "metas",
        "ai_token", "task_id_list", "task_id", "lora_path", "scale", "adapter_name", "query", "temperature", "sample_type", "slot",
    ]  # fmt: skip
    values = [
        "", -1, 2.5, 10**400, "1e999", float("nan"), True, "x", "\x00", "\ud800", [], ["a", None], [[]], {}, {"a": {"b": 1}}, "{",
        '{"bpm": 1}', "1,2,3", ",", f"input:{'0' * 64}", "/v1/audio?path=x", "https://[x", "cover", "repaint", "lego", "stems",
    ]  # fmt: skip
    chosen = random.Random(7)
    paths = [
        route.path
        for part in (tasks, server, lora, writing)
        for route in part.router.routes
        if isinstance(route, APIRoute) and "POST" in (route.methods or ())
    ]
    seen = set()

    for _ in range(150):
        body = {chosen.choice(names): chosen.choice(values) for _ in range(chosen.randint(1, 5))} | {"model": "asleep"}
        path = chosen.choice([*paths, "/release_task", "/release_task", "/release_task"])
        answer = service.client.post(
            path, content=json.dumps({"prompt": "x", **body}), headers={"content-type": "application/json"}
        )
        answer.json()
        seen.add(answer.status_code)

    assert len(paths) == 12
    assert {200, 400} <= seen <= {200, 400, 401, 404, 409, 503}


def test_the_documents_example_runs(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example in docs/CLIENTS.md, as it stands there, leaves a song."""
    section = (ROOT / "docs" / "CLIENTS.md").read_text().partition("### ACE-Step's own server")[2]
    [code] = re.findall(r"^```python\n(.*?)^```", section.partition("\n### ")[0], re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)

    exec(compile(code.replace("http://localhost:8000", service.url), "CLIENTS.md", "exec"), {})  # noqa: S102

    assert seconds_of((tmp_path / "song.flac").read_bytes()) == 10

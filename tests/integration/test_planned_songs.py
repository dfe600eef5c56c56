"""Planned songs over HTTP: requests that are planned, plans that are used again, and plans without songs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.planner.simulated import SimulatedPlanner
from serve_app.music.plan import Plan
from tests.support.failure_codes import provoked
from tests.support.helpers import eventually
from tests.support.recordings import recording
from tests.support.running import Service, running, simulated

LYRICS = "[verse]\nSoft notes in the morning light"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose first model has a planner and a worker, and whose second has neither."""
    planned = simulated(planner={"source": "simulated"}, simulated={"step_s": 0.001, "plan_s": 0.01})
    models = {"ace-step": planned, "plain": simulated(workers=0)}
    with running(tmp_path_factory.mktemp("planned"), models) as service:
        yield service


@pytest.fixture(scope="module")
def planned(service: Service) -> dict[str, Any]:
    """A finished job whose two songs were planned."""
    return service.ended(service.submit(thinking=True, variations=2, seed=7)["id"])


def plan_of(service: Service, job: str) -> dict[str, Any]:
    answer = service.client.get(f"/v1/jobs/{job}/plan")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_planned_song_says_what_was_planned(service: Service, planned: dict[str, Any]) -> None:
    """The job has the plan without its codes, and the plan's own address has five codes a second for each song."""
    plan = plan_of(service, planned["id"])

    assert planned["state"] == "succeeded", planned
    assert (planned["request"]["thinking"], planned["request"]["plan_seed"]) == ("codes", 7)
    assert planned["plan"]["state"] == "done"
    assert planned["plan"]["url"] == planned["links"]["plan"] == f"/v1/jobs/{planned['id']}/plan"
    assert "codes" not in planned["plan"]["facts"]
    assert planned["plan"]["facts"] == {name: value for name, value in plan.items() if name != "codes"}
    assert [len(song) for song in plan["codes"]] == [10, 10]


def test_the_fields_of_the_request_stand_in_the_plan(service: Service) -> None:
    """Tempo, key, time signature, length, language and lyrics are those of the request."""
    fields = {
        "bpm": 93,
        "keyscale": "F# minor",
        "timesignature": "3",
        "duration": 4,
        "vocal_language": "de",
        "lyrics": LYRICS,
    }

    plan = plan_of(service, service.ended(service.submit(thinking="metadata", **fields)["id"])["id"])

    assert (plan["bpm"], plan["keyscale"], plan["timesignature"]) == (93, "F# minor", "3")
    assert (plan["duration"], plan["language"], plan["lyrics"], plan["codes"]) == (4, "de", LYRICS, [])


def test_the_planner_decides_an_open_length(service: Service) -> None:
    """With `auto` the longest counts until the plan is made; the song then has the plan's length."""
    job = service.submit(thinking="codes", duration="auto", steps=1)
    ended = service.ended(job["id"])

    assert (job["request"]["duration"], job["request"]["auto_duration"]) == (600, True)
    assert ended["audio"][0]["seconds"] == ended["plan"]["facts"]["duration"] == 10


def test_an_open_length_is_estimated_for_a_song_that_is_not_planned(service: Service) -> None:
    """Without a planner `auto_duration` gives the length that `auto` gives, and at most `duration`."""
    lengths = [
        service.submit(auto_duration=True, duration=longest, lyrics=LYRICS, steps=1)["request"]["duration"]
        for longest in (600, 5)
    ]

    assert lengths == [service.submit(duration="auto", lyrics=LYRICS, steps=1)["request"]["duration"], 5]


def test_a_plan_used_again_is_the_same_plan(service: Service, planned: dict[str, Any]) -> None:
    """By the job's name, as an object, and by the request of a job that used it: the codes and the song stay the same."""
    plan = plan_of(service, planned["id"])
    by_name = service.ended(service.submit(plan=f"job:{planned['id']}", variations=2, duration=None, seed=7)["id"])
    by_value = service.ended(service.submit(plan=plan, variations=2, duration=None)["id"])
    again = service.client.post("/v1/jobs", json=by_value["request"]).json()["id"]

    plans = [plan_of(service, job)["codes"] for job in (by_name["id"], by_value["id"], service.ended(again)["id"])]

    assert plans == [plan["codes"]] * 3
    assert by_name["request"]["thinking"] == "none"
    assert by_name["request"]["plan"]["job"] == f"job:{by_name['id']}"
    assert [file["sha256"] for file in by_name["audio"]] == [file["sha256"] for file in planned["audio"]]


def test_a_plan_without_codes_becomes_part_of_the_request(service: Service) -> None:
    """An edited plan decides what the request leaves out, and codes are planned for it if they are asked for."""
    job = service.ended(
        service.submit(plan={"caption": "harp", "bpm": 70, "keyscale": "Am"}, bpm=80, thinking="codes")["id"]
    )

    assert (job["request"]["prompt"], job["request"]["bpm"], job["request"]["keyscale"]) == ("harp", 80, "A minor")
    assert (job["plan"]["facts"]["bpm"], len(plan_of(service, job["id"])["codes"])) == (80, 1)


def test_the_same_request_gives_the_same_plan(service: Service, planned: dict[str, Any]) -> None:
    """The request of a job, sent again, gives the same codes and the same file; another plan_seed gives others."""
    same = service.client.post("/v1/jobs", json=planned["request"]).json()["id"]
    other = service.client.post("/v1/jobs", json=planned["request"] | {"plan_seed": 8}).json()["id"]

    repeated = service.ended(same)
    assert plan_of(service, same)["codes"] == plan_of(service, planned["id"])["codes"]
    assert [file["sha256"] for file in repeated["audio"]] == [file["sha256"] for file in planned["audio"]]
    assert service.ended(other)["state"] == "succeeded"
    assert plan_of(service, other)["codes"] != plan_of(service, planned["id"])["codes"]


def test_a_planner_that_fails_fails_the_job(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends with the planner's error, and so does a call that waits for a plan. The planner goes on with the next."""

    def broken(*arguments: Any) -> Plan:
        raise RuntimeError("a tensor has the wrong shape")

    monkeypatch.setattr(SimulatedPlanner, "plan", broken)
    job = service.ended(service.submit(thinking="codes")["id"])
    answer = service.client.post("/v1/plan", json={"prompt": "x"})
    monkeypatch.undo()

    assert (job["state"], job["error"]["code"], job["plan"]["state"]) == ("failed", "planning_failed", "failed")
    assert answer.json()["code"] == "generation_failed"
    assert "planning_failed" in answer.json()["detail"]
    assert service.ended(service.submit(thinking="codes")["id"])["state"] == "succeeded"
    provoked("planning_failed", "the planner fails on a song for an unknown reason", job["error"]["message"])


def test_a_cancelled_job_has_no_plan(service: Service) -> None:
    """A job that is cancelled while it is planned ends at once, and its plan's address says so."""
    job = service.submit(thinking="codes", duration=600)["id"]
    shown = eventually(lambda: view if (view := service.job(job))["plan"]["state"] == "planning" else None)

    cancelled = service.client.post(f"/v1/jobs/{job}/cancel").json()
    answer = service.client.get(f"/v1/jobs/{job}/plan")

    assert (shown["state"], shown["waiting_for"]) == ("queued", "its plan is being made")
    assert (cancelled["state"], cancelled["plan"]["state"]) == ("cancelled", "cancelled")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_jobs_without_a_planner_have_no_plan(service: Service) -> None:
    """A job that is not planned shows null, and its plan's address answers 404."""
    job = service.submit(steps=1)

    assert (job["plan"], job["request"]["thinking"]) == (None, None)
    assert service.client.get(f"/v1/jobs/{job['id']}/plan").status_code == 404


def test_a_task_with_a_source_is_not_planned(service: Service, planned: dict[str, Any]) -> None:
    """`thinking` beside a cover is left out, with a warning."""
    job = service.submit(task_type="cover", source=f"job:{planned['id']}/0", thinking="codes", steps=1, duration=None)

    assert job["request"]["thinking"] == "none"
    assert "thinking is ignored: task_type 'cover'" in job["warnings"][0]


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"thinking": "hard"}, "thinking", "'none', 'metadata' or 'codes'"),
        (
            {"thinking": "codes", "model": "plain"},
            "thinking",
            "'plain' has no planner; the models that have one: 'ace-step'",
        ),
        ({"thinking": "codes", "audio_codes": [1]}, "thinking", "because the request has audio_codes"),
        ({"plan": 5}, "plan", "must be an object"),
        ({"plan": "job:5"}, "plan.job", "must be job:ID with the id of one of your jobs"),
        ({"plan": "job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"}, "plan", "names no plan of yours"),
        ({"plan": {"mood": "blue"}}, "plan.mood", "not a known field; the fields are job, caption"),
        ({"plan": {"codes": [[1]]}, "variations": 2}, "plan.codes", "are those of 1 song, but the request needs 2"),
        ({"plan": {"codes": [[1] * 5]}, "duration": 3}, "duration", "must be left out or 1"),
        ({"plan": {"bpm": 900}}, "plan.bpm", "less than or equal to 300"),
        ({"plan_temperature": 3}, "plan_temperature", "less than or equal to 2"),
        ({"plan_top_p": 0}, "plan_top_p", "greater than or equal to 0.1"),
        ({"lm_temperature": 1}, "lm_temperature", "Sophia calls it 'plan_temperature'"),
        ({"use_cot_caption": True}, "use_cot_caption", "Sophia calls it 'plan_caption'"),
    ],
)
def test_a_wrong_field_is_named(service: Service, body: dict[str, Any], field: str, says: str) -> None:
    """The error has the field's path and what is allowed."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x"} | body)

    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert says in error["message"]


def test_a_plan_can_be_made_before_its_song(service: Service) -> None:
    """POST /v1/plan answers with the plan that the job of the same request has, and leaves nothing behind."""
    body = {"prompt": "piano", "duration": 2, "seed": 7, "variations": 2}

    plan = service.client.post("/v1/plan", json=body).json()
    job = service.ended(service.submit(**body, thinking="codes")["id"])

    assert plan == plan_of(service, job["id"])
    assert [len(song) for song in plan["codes"]] == [10, 10]


def test_a_request_is_formatted_and_a_description_becomes_a_song(service: Service) -> None:
    """Format keeps the fields that the request has; sample takes the description, and `[Instrumental]` for no lyrics."""
    formatted = service.client.post("/v1/format", json={"prompt": "piano", "lyrics": LYRICS, "bpm": 99})
    sampled = service.client.post("/v1/sample", json={"prompt": "a sad song", "lyrics": "[Instrumental]"})

    assert (formatted.status_code, formatted.json()["bpm"], formatted.json()["codes"]) == (200, 99, [])
    assert (sampled.status_code, sampled.json()["caption"], sampled.json()["instrumental"]) == (200, "a sad song", True)


def test_a_song_is_understood_from_its_codes(service: Service) -> None:
    """Codes, also as text, get a caption and their length."""
    answer = service.client.post("/v1/understand", json={"audio_codes": "<|audio_code_1|>" * 15})

    assert answer.status_code == 200, answer.text
    assert answer.json()["duration"] == 3


def test_recordings_are_understood(service: Service) -> None:
    """An upload, and a song whose codes were not kept, are turned into codes by the worker, and then described."""
    upload = service.client.post("/v1/inputs", content=recording("flac", seconds=3)).json()
    song = service.ended(service.submit(keep_latents=False, steps=1)["id"])

    answers = [
        service.client.post("/v1/understand", json={"source": source})
        for source in (upload["name"], f"job:{song['id']}/0")
    ]

    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    assert [answer.json()["duration"] for answer in answers] == [3, 2]


def test_a_recording_that_is_too_long_is_not_understood(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how long it is, and how long it may be."""
    monkeypatch.setattr("serve_app.api.plans.LONGEST_S", 2)
    upload = service.client.post("/v1/inputs", content=recording("flac", seconds=3)).json()

    answer = service.client.post("/v1/understand", json={"source": upload["name"]})

    assert answer.status_code == 422
    assert "is 3 s long; it must have at most 2 s" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("route", "body", "field", "says"),
    [
        ("plan", {"prompt": "x", "model": "plain"}, "model", "has no planner; the models that have one: 'ace-step'"),
        ("plan", {"prompt": "x", "thinking": "none"}, "thinking", "there is nothing else to do"),
        ("plan", {"prompt": "x", "plan": {"codes": [[1] * 5]}}, "plan", "leaves nothing to plan"),
        ("plan", {"prompt": "x", "task_type": "cover"}, "source", "is required"),
        ("format", {"prompt": " "}, "prompt", "must not be blank"),
        ("understand", {}, "audio_codes", "is required, or `source`"),
        ("understand", {"audio_codes": [64_000]}, "audio_codes.0", "less than 64000"),
        ("understand", {"source": f"input:{'0' * 64}"}, "source", "names no input of yours"),
    ],
)
def test_a_wrong_plan_request_is_refused(
    service: Service, route: str, body: dict[str, Any], field: str, says: str
) -> None:
    """The routes for plans without songs name the wrong field, too."""
    answer = service.client.post(f"/v1/{route}", json=body)

    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert says in error["message"]


def test_planning_ends_when_the_caller_leaves(service: Service) -> None:
    """The planner drops the plan of a call whose caller has hung up, and the row is gone."""
    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/v1/plan", json={"prompt": "x", "duration": 600, "variations": 8}, timeout=0.5)

    eventually(lambda: service.store.plans.without_songs("ace-step") == 0)


def test_a_plan_that_takes_too_long_is_a_504(service: Service) -> None:
    """The call's deadline ends it."""
    answer = service.client.post("/v1/plan", json={"prompt": "x", "duration": 600, "deadline_s": 1})

    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


def test_the_models_say_who_has_a_planner(service: Service) -> None:
    """GET /v1/models has the planner of a model, or null."""
    planners = {model["name"]: model["planner"] for model in service.client.get("/v1/models").json()["models"]}

    assert planners["plain"] is None
    assert (planners["ace-step"]["source"], planners["ace-step"]["thinking"]) == ("simulated", "none")


def test_a_language_model_plans_and_the_model_renders(engine: AceStepEngine, tmp_path: Path) -> None:
    """With random weights of both: the request's fields stand in the plan, and the same request gives the same files."""
    random = ModelArgs.model_validate({"source": "random", "device": "cpu", "planner": {"source": "random"}})
    fields = {"thinking": "codes", "seed": 3, "bpm": 93, "keyscale": "F# minor", "variations": 2, "steps": 1}
    with running(tmp_path, {"test": random}, engine) as service:
        job = service.ended(service.submit(**fields)["id"])
        again = service.ended(service.submit(**fields)["id"])
        plan = plan_of(service, job["id"])
        reused = service.ended(service.submit(plan=plan, seed=3, variations=2, steps=1)["id"])
        understood = service.client.post("/v1/understand", json={"audio_codes": plan["codes"][0]})
        unknown = service.client.post("/v1/understand", json={"source": f"job:{job['id']}/0"})

    assert job["state"] == "succeeded", job["error"]
    assert (plan["bpm"], plan["keyscale"], plan["duration"]) == (93, "F# minor", 2)
    assert [len(song) for song in plan["codes"]] == [10, 10]
    assert plan["codes"][0] != plan["codes"][1]
    assert (understood.status_code, understood.json().get("codes")) == (200, [])
    assert (unknown.status_code, unknown.json()["code"]) == (
        422,
        "invalid_request",
    )  # the random planner knows few codes
    files = [[file["sha256"] for file in each["audio"]] for each in (job, again, reused)]
    assert files[0] == files[1] == files[2]

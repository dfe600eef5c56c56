"""A request that brings a plan: what it takes over, and what it refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.music import MusicRequest
from serve_app.music.given_plan import with_given_plan
from serve_app.music.plan import Plan

JOB = "job:0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"
CODES = [[code] * 50 for code in (1, 2)]
EARLIER = Plan("soft piano", "[verse]\nla", 92, "C major", "3", 10.0, "de", False, tuple(map(tuple, CODES)), 5)


def request(**fields: Any) -> MusicRequest:
    """A request as a client sends it."""
    return MusicRequest.model_validate({"prompt": "piano", **fields})


def test_what_a_request_leaves_out_comes_from_the_plan_of_the_job() -> None:
    """Every field that is left out has the plan's value, and the plan has the codes of as many songs as are made."""
    found, plan = with_given_plan(request(plan=JOB), EARLIER)

    assert (found.prompt, found.lyrics, found.bpm, found.keyscale) == ("soft piano", "[verse]\nla", 92, "C major")
    assert (found.timesignature, found.duration, found.vocal_language) == ("3", 10.0, "de")
    assert (found.thinking, found.is_planned) == ("none", False)
    assert plan is not None
    assert plan.codes == ((1,) * 50,)
    assert (plan.caption, plan.bpm, plan.duration, plan.seed) == ("soft piano", 92, 10.0, 5)


def test_the_fields_of_the_request_count_more_than_the_plan() -> None:
    """Tempo, lyrics, language and caption of the request stay, and those written beside the job replace the job's."""
    wanted = request(
        plan={"job": JOB, "keyscale": "Am"}, bpm=140, lyrics="ho", vocal_language="fr", plan_caption=False, variations=2
    )

    found, plan = with_given_plan(wanted, EARLIER)

    assert (found.prompt, found.bpm, found.lyrics, found.vocal_language) == ("piano", 140, "ho", "fr")
    assert found.keyscale == "A minor"
    assert plan is not None
    assert (plan.bpm, plan.keyscale, len(plan.codes)) == (140, "A minor", 2)


def test_other_codes_have_their_own_length() -> None:
    """Codes written beside the job replace the job's, and with them its length."""
    found, plan = with_given_plan(request(plan={"job": JOB, "codes": [[7] * 20]}), EARLIER)

    assert plan is not None
    assert (found.duration, plan.duration, plan.codes) == (4.0, 4.0, ((7,) * 20,))


def test_a_plan_without_codes_fills_in_the_request_and_leaves_the_codes_to_the_planner() -> None:
    """Its fields become the request's, so that codes are planned for them if the request asks for that."""
    found, plan = with_given_plan(
        request(thinking=True, duration="auto", plan={"caption": "harp", "bpm": "80", "duration": 20, "seed": 3}), None
    )

    assert plan is None
    assert (found.prompt, found.bpm, found.duration, found.auto_duration) == ("harp", 80, 20, False)
    assert (found.plan, found.thinking, found.plan_seed) == (None, "codes", 3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"duration": 20}, "duration: must be left out or 10"),
        ({"variations": 3}, "plan.codes: are those of 2 songs, but the request needs 3"),
        ({"plan": {"job": JOB, "duration": 8}}, "plan.duration: must be left out"),
        ({"task_type": "lego", "source": f"{JOB}/0"}, "plan.codes: belong to task_type 'text2music'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(fields: dict[str, Any], says: str) -> None:
    """The error starts with the field that is wrong."""
    wanted = request(**({"plan": JOB} | fields))

    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        with_given_plan(wanted, EARLIER)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({}, "must have at least one field"),
        ({"codes": [[1, 2], [3]]}, "must have the same length for each song, but have from 1 to 2"),
        (
            {"codes": [[1, 2]], "duration": 3},
            "must be 15 for each song, 5 for each second of the duration of 3 s, but are 2",
        ),
        ({"codes": [[64_000]]}, "less than 64000"),
        ({"codes": [[-1]]}, "greater than or equal to 0"),
        ({"mood": "blue"}, "Extra inputs"),
        ({"job": "job:7"}, "should match pattern"),
        ("7", "should match pattern"),
    ],
)
def test_a_plan_is_checked_when_the_request_is_read(plan: Any, says: str) -> None:
    """Codes have their range and are five a second, and a job has its form."""
    with pytest.raises(ValidationError, match=says):
        request(plan=plan)


def test_codes_are_also_read_as_text() -> None:
    """One song's or several songs' codes in ACE-Step's spelling."""
    alone = request(plan={"codes": "<|audio_code_3|><|audio_code_4|>"}).plan
    several = request(plan={"codes": ["<|audio_code_3|>", [5.0]]}).plan

    assert alone is not None
    assert several is not None
    assert (alone.codes, several.codes) == ([[3, 4]], [[3], [5]])


@pytest.mark.parametrize(
    ("given", "understood"), [(True, "codes"), (False, "none"), ("True", "codes"), ("Metadata", "metadata")]
)
def test_thinking_is_read_as_acestep_sends_it(given: Any, understood: str) -> None:
    """true and false mean what they mean in ACE-Step."""
    assert request(thinking=given).thinking == understood

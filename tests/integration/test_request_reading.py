"""How requests are read: alternative spellings, defaults, and errors that point to the right field."""

import json
from typing import Any

import httpx
import jsonschema
import pytest
from pydantic import ValidationError

from serve_app.engine.ace_step.generating import lyrics_and_language, seeds
from serve_app.engine.ace_step.settings import sampling_settings, shifted_levels
from serve_app.music import MAX_SEED, MusicRequest
from tests.support.helpers import quickest_s
from tests.support.running import Service


@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    ("field", "given", "understood"),
    [
        ("keyscale", "Am", "A minor"),
        ("keyscale", "c Major", "C major"),
        ("keyscale", "F#m", "F# minor"),
        ("keyscale", "B♭ min", "Bb minor"),
        ("keyscale", "E flat major", "Eb major"),
        ("timesignature", "4/4", "4"),
        ("timesignature", 6, "6"),
        ("bpm", "120", 120),
        ("duration", "2.5", 2.5),
        ("format", "FLAC", "flac"),
        ("vocal_language", "EN", "en"),
    ],
)
def test_what_means_one_thing_is_read_as_that(service: Service, field: str, given: Any, understood: Any) -> None:
    """An alternative spelling is accepted, and the job's `request` contains the normal one."""
    job = service.submit(**{field: given})

    assert job["request"][field] == understood


@pytest.mark.fault("C1")
@pytest.mark.parametrize("nothing", ["", "N/A", " n/a "])
def test_musical_facts_may_be_said_to_be_open(service: Service, nothing: str) -> None:
    """The values that ACE-Step's web page sends for an unset tempo, key or time signature leave the choice to the model."""
    job = service.submit(bpm=nothing, keyscale=nothing, timesignature=nothing)

    assert [job["request"][name] for name in ("bpm", "keyscale", "timesignature")] == [None, None, None]


@pytest.mark.fault("C1")
def test_digits_of_other_scripts_are_no_numbers(service: Service) -> None:
    """A tempo in digits of another script is refused."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", "bpm": "١٢٠"})

    assert answer.json()["errors"][0]["field"] == "bpm"


@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    ("field", "read", "refused"),
    [
        ("bpm", ["120", "30", "300", "N/A", ""], ["29", "301", "x", "120.5"]),
        ("duration", ["1", "2.5", "599.9", "600", "auto"], ["0", "0.5", "600.1", "601"]),
        ("variations", ["1", "8"], ["0", "9"]),
        ("seed", ["-1", "0", "4294967295"], ["-2", "4294967296"]),
        ("steps", ["1", "99", "100", "200"], ["0", "201"]),
        ("shift", ["0.1", "0.95", "1", "9.99", "10"], ["0.05", "10.1"]),
        ("cfg_interval_end", ["0", "0.25", "1"], ["1.5"]),
        ("deadline_s", ["1", "604800", "86400.5"], ["604801"]),
        ("dcw", ["true", "False"], ["yes"]),
        ("sampler", ["Heun"], ["ode"]),
        ("plan_top_p", ["0.1", "0.95", "1"], ["", "0", "0.05", "1.1"]),
        ("dcw_strength", ["0", "0.05", "1"], ["1.1"]),
        ("format", ["MP3", "Wav32", "aac"], ["wma"]),
        ("vocal_language", ["EN", "Unknown"], ["xx"]),
        ("keyscale", ["Am", "N/A"], ["H"]),
        (
            "audio_codes",
            ["<|audio_code_0|>", "<|audio_code_10000|><|audio_code_65535|>", ""],
            ["<|audio_code_65536|>", "7"],
        ),
    ],
)
def test_the_schema_says_what_is_read(field: str, read: list[str], refused: list[str]) -> None:
    """The OpenAPI schema of a request accepts the same texts as the service, and that of an answer only the normal spelling."""
    schema = MusicRequest.model_json_schema()["properties"][field]
    answered = MusicRequest.model_json_schema(mode="serialization")["properties"][field]
    says = jsonschema.Draft202012Validator({"anyOf": schema["anyOf"]}).is_valid

    assert [(text, says(text), _is_read(field, text)) for text in read] == [(text, True, True) for text in read]
    assert [(text, says(text), _is_read(field, text)) for text in refused] == [(text, False, False) for text in refused]
    assert len(answered["anyOf"]) < len(schema["anyOf"])


def _is_read(field: str, text: str) -> bool:
    try:
        MusicRequest.model_validate({"prompt": "x", field: text})
    except ValidationError:
        return False
    return True


@pytest.mark.fault("C1")
def test_null_means_left_out_and_minus_one_a_drawn_seed(service: Service) -> None:
    """A client that sends null for every optional field gets the defaults."""
    names = set(MusicRequest.model_fields) - {"prompt", "duration", "format", "webhook_url"}

    job = service.submit(**dict.fromkeys(names), webhook_url=None)
    drawn = service.submit(seed=-1)

    assert job["request"]["variations"] == 1
    assert 0 <= drawn["request"]["seed"] <= MAX_SEED


@pytest.mark.fault("C2")
def test_an_error_text_points_to_the_right_field(service: Service) -> None:
    """The error for another service's field name contains Sophia's name, and the error for a wrong key contains examples."""
    wrong = {"prompt": "x", "caption": "y", "audio_duration": 3, "keyscale": "loud"}

    errors = {
        error["field"]: error["message"] for error in service.client.post("/v1/jobs", json=wrong).json()["errors"]
    }

    assert "'prompt'" in errors["caption"]
    assert "'duration'" in errors["audio_duration"]
    assert "'F# minor'" in errors["keyscale"]
    assert "^" not in errors["keyscale"]


@pytest.mark.fault("C2")
@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("tags", "prompt"),
        ("audioDuration", "duration"),
        ("target_duration", "duration"),
        ("inferenceSteps", "steps"),
        ("batchSize", "variations"),
        ("timeSignature", "timesignature"),
        ("audio-format", "format"),
        ("modelName", "model"),
        ("lyrcs", "lyrics"),
        ("Prompt", "prompt"),
    ],
)
def test_another_services_name_or_a_slip_leads_to_the_field_that_is_meant(
    service: Service, foreign: str, ours: str
) -> None:
    """The error for another service's field name or for a misspelled one contains the right name."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", foreign: "y"})

    [error] = answer.json()["errors"]
    assert error["message"].endswith((f"Sophia calls it {ours!r}", f"did you mean {ours!r}?"))


@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", ["mood", "speed", "instrumental", "negative_prompt"])
def test_a_name_that_means_something_else_is_not_taken_for_one_of_ours(service: Service, name: str) -> None:
    """The error for a name that only resembles a field lists all fields and makes no suggestion."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", name: 1})

    [error] = answer.json()["errors"]
    assert "did you mean" not in error["message"]
    assert "the fields are prompt, title, lyrics" in error["message"]


@pytest.mark.fault("C2")
@pytest.mark.parametrize("wrong", [5, 4.5, "5/4", True, []])
def test_the_error_for_a_wrong_time_signature_shows_the_right_form(service: Service, wrong: Any) -> None:
    """The error for a wrong time signature lists the accepted spellings, and 4.0 is accepted as 4."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", "timesignature": wrong})
    whole = service.submit(timesignature=4.0)

    [error] = answer.json()["errors"]
    assert "also written '2/4', '3/4', '4/4' or '6/8'" in error["message"]
    assert whole["request"]["timesignature"] == "4"


@pytest.mark.fault("C4")
def test_the_variants_defaults_are_the_originals() -> None:
    """Each variant has the defaults of the original ACE-Step: schedule, guidance interval, DCW, and an instrumental's lyrics."""
    turbo = sampling_settings(MusicRequest(prompt="x"), "turbo")
    base = sampling_settings(MusicRequest(prompt="x"), "base")
    early = sampling_settings(MusicRequest(prompt="x", cfg_interval_start=0.75), "sft")

    assert turbo.levels == shifted_levels(8, 3.0)
    assert base.levels == shifted_levels(50, 1.0)
    assert (turbo.dcw_mode, base.dcw_mode, early.dcw_mode) == ("double", None, None)
    assert sampling_settings(MusicRequest(prompt="x"), "turbo", "embedded").dcw_mode is None
    assert (early.guidance_start, early.guidance_end) == (0.75, 1.0)
    assert lyrics_and_language(MusicRequest(prompt="x")) == ("[Instrumental]", "unknown")
    assert lyrics_and_language(MusicRequest(prompt="x", lyrics="la la", vocal_language="de")) == ("la la", "de")


@pytest.mark.fault("C9")
def test_seeds_stay_in_range_and_line_ends_do_not_matter(service: Service) -> None:
    """Seed 0 follows the largest seed, CRLF is converted to LF, and a blank prompt is refused."""
    assert seeds(MusicRequest(prompt="x", seed=MAX_SEED, variations=2)) == [MAX_SEED, 0]
    assert service.submit(lyrics="one\r\ntwo\rthree")["request"]["lyrics"] == "one\ntwo\nthree"
    assert service.client.post("/v1/jobs", json={"prompt": " \t\n"}).status_code == 422


@pytest.mark.fault("B7")
def test_an_error_is_bounded_whatever_the_body(service: Service) -> None:
    """The error for forty thousand unknown fields has a few kilobytes and takes little longer than parsing them."""
    fields = {"prompt": "x"} | {f"field{number}": 1 for number in range(40_000)}
    body = json.dumps(fields)

    def read() -> None:
        with pytest.raises(ValidationError) as caught:
            MusicRequest.model_validate_json(body)
        caught.value.errors()

    def send() -> httpx.Response:
        return service.client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})

    answer = send()

    assert answer.status_code == 422
    assert len(answer.content) < 40_000
    assert "40000 errors in all" in answer.json()["detail"]
    assert quickest_s(send) < 15 * quickest_s(read)  # 2 here; 60 when a near name was looked for to each of them

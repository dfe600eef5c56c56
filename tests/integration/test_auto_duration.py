"""`duration: "auto"` in the API."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.running import Service, running

VERSE = "[verse]\n" + "Soft notes in the morning light\n" * 4


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests of this file."""
    with running(tmp_path_factory.mktemp("length")) as service:
        yield service


@pytest.mark.fault("C3")
def test_auto_is_decided_at_submission_and_shown_in_seconds(service: Service) -> None:
    """The job's request contains a number, its song has that length, and a slower tempo gives a longer song."""
    slow = service.submit(duration="auto", lyrics="[verse]\nrain", bpm=80)
    fast = service.submit(duration="AUTO", lyrics="[verse]\nrain", bpm="160")

    # 4 bars before the words, a line of one bar, one to breathe, 4 after them.
    assert slow["request"]["duration"] == 10 * 4 * 60 / 80
    assert fast["request"]["duration"] == 10 * 4 * 60 / 160
    assert service.ended(fast["id"])["audio"][0]["seconds"] == 15


def test_a_song_is_as_long_as_its_audio_codes(service: Service) -> None:
    """Without a duration, or with `auto`, five codes make a second; a given duration counts, also that of the default."""
    codes = "<|audio_code_1|>" * 12
    lengths = [
        service.submit(audio_codes=codes, duration=None)["request"]["duration"],
        service.submit(audio_codes=codes, duration="auto", lyrics=VERSE)["request"]["duration"],
        service.submit(audio_codes=[5], duration=None)["request"]["duration"],
        service.submit(audio_codes=codes, duration=60)["request"]["duration"],
    ]

    assert lengths == [2.4, 2.4, 1, 60]


@pytest.mark.fault("C3")
def test_left_out_is_60_seconds_and_the_api_page_says_so(service: Service) -> None:
    """Without `duration` a song with lyrics has 60 seconds, and the OpenAPI page describes both the default and `auto`."""
    job = service.submit(duration=None, lyrics=VERSE, steps=1)
    schemas = service.client.get("/openapi.json").json()["components"]["schemas"]
    field = schemas["MusicRequest-Input"]["properties"]["duration"]

    assert job["request"]["duration"] == 60
    assert "Default: 60" in field["description"]
    assert {"const": "auto", "type": "string"} in field["anyOf"]


@pytest.mark.fault("C3")
@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"duration": "automatic"}, "duration"),
        ({"lyrics": 5}, "lyrics"),
        ({"bpm": 5}, "bpm"),
        ({"timesignature": 5}, "timesignature"),
    ],
)
def test_a_wrong_field_beside_auto_gets_the_usual_error(service: Service, fields: dict[str, Any], wrong: str) -> None:
    """A wrong field beside `auto` is reported under its own name, and no other field is."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", "duration": "auto", **fields})

    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == wrong
    assert ("or 'auto'" in error["message"]) == (wrong == "duration")

"""`duration: "auto"`: how long a song is made for its lyrics."""

from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.music.song_length import INSTRUMENTAL_S, song_length_s, syllables
from tests.support.running import Service, running

VERSE = "[verse]\n" + "Soft notes in the morning light\n" * 4
CHORUS = "[chorus]\n" + "Rain on the window sings tonight\n" * 4


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests of this file."""
    with running(tmp_path_factory.mktemp("length")) as service:
        yield service


@pytest.mark.fault("C3")
def test_auto_is_decided_at_submission_and_shown_in_seconds(service: Service) -> None:
    """The job's request has a number, its song that length; the same text takes longer in a slower tempo."""
    slow = service.submit(duration="auto", lyrics="[verse]\nrain", bpm=80)
    fast = service.submit(duration="AUTO", lyrics="[verse]\nrain", bpm="160")

    # 4 bars before the words, a line of one bar, one to breathe, 4 after them.
    assert slow["request"]["duration"] == 10 * 4 * 60 / 80
    assert fast["request"]["duration"] == 10 * 4 * 60 / 160
    assert service.ended(fast["id"])["audio"][0]["seconds"] == 15


@pytest.mark.fault("C3")
def test_left_out_is_60_seconds_and_the_api_page_says_so(service: Service) -> None:
    """Lyrics alone change no length, and the field's description tells both."""
    job = service.submit(duration=None, lyrics=VERSE, steps=1)
    schemas = service.client.get("/openapi.json").json()["components"]["schemas"]
    field = schemas["MusicRequest-Input"]["properties"]["duration"]

    assert job["request"]["duration"] == 60
    assert "Left out: 60" in field["description"]
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
def test_a_wrong_field_beside_auto_is_told_as_ever(service: Service, fields: dict[str, Any], wrong: str) -> None:
    """What the rule cannot read is refused under its own name, and only that."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", "duration": "auto", **fields})

    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == wrong
    assert ("or 'auto'" in error["message"]) == (wrong == "duration")


@pytest.mark.parametrize(
    ("lyrics", "bars"),
    [
        ("la", 4 + 1 + 1 + 4),
        ("[intro]\n[verse]\nla\n[outro]", 4 + 1 + 1 + 4),
        ("[verse]\nla\n[guitar solo]\n[chorus]\nla", 4 + 2 + 8 + 2 + 4),
        ("[verse] la\r\nla\r\n", 4 + 1 + 2 + 4),
        ("[intro]\n[drop]\n[outro]", 4 + 8 + 4),
        # 8 syllables take 3.2 s, which is two bars of 2.4 s.
        (VERSE, 4 + 1 + 4 * 2 + 4),
        (VERSE + CHORUS, 4 + (1 + 4 * 2) * 2 + 4),
    ],
)
def test_length_is_counted_in_bars(lyrics: str, bars: int) -> None:
    """Lines, sections with words and without, beginning and end have their bars, here of 2.4 s."""
    assert song_length_s(lyrics) == round(bars * 2.4)


@pytest.mark.parametrize("lyrics", ["", "  \n", "[Instrumental]", "[inst]", "[]", "..."])
def test_without_words_and_sections_it_is_two_minutes(lyrics: str) -> None:
    """An instrumental of which nothing more is said has the default."""
    assert song_length_s(lyrics) == INSTRUMENTAL_S


def test_length_stays_in_its_bounds() -> None:
    """The longest lyrics and the shortest give what a request may ask for."""
    assert song_length_s("la " * 6000, bpm=30) == 600
    assert song_length_s("la", bpm=300, beats=2) == 10


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("Rain on the window", 5),
        ("Été à Paris", 5),
        ("мама мыла раму", 6),
        ("Καλημέρα", 4),
        ("雨が降る", 4),
        ("사랑해요", 4),
        ("بيت", 2),
        ("mm, 24", 3),
        ("(—)", 0),
    ],
)
def test_syllables_of_many_scripts(line: str, count: int) -> None:
    """About right in scripts with vowels, with characters for syllables, and without vowels."""
    assert syllables(line) == count

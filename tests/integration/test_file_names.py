"""Titles, and the names of downloaded files."""

import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mutagen
import pytest

from tests.support.running import Service, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One service for all tests of this file."""
    with running(tmp_path_factory.mktemp("names")) as service:
        yield service


def saved_as(service: Service, **fields: Any) -> tuple[str, str | None]:
    """The file's name in ASCII, and its name in UTF-8 or None."""
    job = service.ended(service.submit(duration=1, seed=7, **fields)["id"])
    header = service.client.head(job["audio"][0]["url"]).headers["content-disposition"]
    found = re.fullmatch(r"""inline; filename="([ -!#-\[\]-~]+)"(?:; filename\*=UTF-8''([A-Za-z0-9%_.~-]+))?""", header)
    assert found is not None, header
    return found[1], found[2] and unquote(found[2])


@pytest.mark.fault("C10")
@pytest.mark.parametrize(
    ("fields", "plain", "other"),
    [
        ({"title": "Rainy day"}, "Rainy day-7.flac", None),
        ({"prompt": "warm lo-fi piano", "format": "aac"}, "warm lo-fi piano-7.m4a", None),
        ({"title": "Café – 雨", "format": "wav32"}, "Cafe-7.wav", "Café – 雨-7.wav"),
        ({"prompt": 'a"; filename="evil.exe\r\nSet-Cookie: x=1'}, "a ; filename= evil.exe Set-Cookie x=1-7.flac", None),
        ({"title": "../../etc/passwd"}, "etc passwd-7.flac", None),
        ({"title": "cod.\u202e3pm.exe%22"}, "cod.3pm.exe 22-7.flac", None),
    ],
)
def test_a_file_is_saved_under_its_title(
    service: Service, fields: dict[str, Any], plain: str, other: str | None
) -> None:
    """The file name consists of title or prompt, and seed, without characters that could end the header or change the folder."""
    assert saved_as(service, **fields) == (plain, other)


@pytest.mark.fault("C10")
def test_a_title_of_another_script_has_the_jobs_id_in_ascii(service: Service) -> None:
    """The ASCII name of a title without ASCII characters is the job's id, and a long title is cut to what file systems allow."""
    title = "雨" * 200

    plain, other = saved_as(service, title=title)

    assert re.fullmatch(r"[0-9a-f-]{36}-7\.flac", plain)
    assert other == "雨" * 60 + "-7.flac"
    assert len(other.encode()) <= 255
    assert unicodedata.is_normalized("NFC", other)


@pytest.mark.fault("C10")
def test_a_requests_title_tempo_key_and_lyrics_are_in_its_file(service: Service, tmp_path: Path) -> None:
    """The file's tags contain the request's title, tempo, key and lyrics."""
    fields = {"title": "Rainy day", "bpm": 92, "keyscale": "Am", "lyrics": "[verse]\nrain", "format": "aac"}
    job = service.ended(service.submit(duration=1, seed=7, **fields)["id"])

    answer = service.client.get(job["audio"][0]["url"])

    path = tmp_path / "song.m4a"
    path.write_bytes(answer.content)
    tags = mutagen.File(path).tags
    assert answer.headers["content-type"] == "audio/mp4"
    assert job["request"]["title"] == "Rainy day"
    assert (tags["\xa9nam"], tags["tmpo"], tags["\xa9lyr"]) == (["Rainy day"], [92], ["[verse]\nrain"])
    assert bytes(tags["----:com.apple.iTunes:initialkey"][0]) == b"Am"


@pytest.mark.fault("C10")
def test_a_title_is_one_line(service: Service) -> None:
    """A title with a line break is refused, and the error names the field."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", "title": "a\nb"})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "title"

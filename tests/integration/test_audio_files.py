"""Audio files over HTTP: ranges, caching and missing files."""

from typing import Any

import pytest

from tests.support.running import Service


def test_a_part_of_a_file_can_be_fetched(service: Service, song: dict[str, Any]) -> None:
    """A range at the start, in the middle or at the end returns those bytes with a Content-Range header."""
    url = song["audio"][0]["url"]
    size = song["audio"][0]["bytes"]
    whole = service.client.get(url).content
    for asked, expected in {"bytes=0-9": (0, 10), "bytes=100-": (100, size), "bytes=-7": (size - 7, size)}.items():
        answer = service.client.get(url, headers={"Range": asked})
        assert answer.status_code == 206
        assert answer.content == whole[slice(*expected)]
        assert answer.headers["content-range"] == f"bytes {expected[0]}-{expected[1] - 1}/{size}"
    beyond = service.client.get(url, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b"])
def test_a_range_that_is_none_gives_the_whole_file(service: Service, song: dict[str, Any], asked: str) -> None:
    """A Range header that RFC 9110 calls invalid, or that has an unknown unit, is ignored."""
    answer = service.client.get(song["audio"][0]["url"], headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, song["audio"][0]["bytes"])


def test_a_file_that_is_cached_is_not_sent_again(service: Service, song: dict[str, Any]) -> None:
    """The ETag is the file's SHA-256; If-None-Match with it gets 304, and If-Range with another ETag gets the whole file."""
    url = song["audio"][0]["url"]
    etag = f'"{song["audio"][0]["sha256"]}"'
    assert service.client.get(url).headers["etag"] == etag
    assert service.client.get(url, headers={"If-None-Match": f'"other", W/{etag}'}).status_code == 304
    part = {"Range": "bytes=0-3"}
    assert service.client.get(url, headers={**part, "If-Range": etag}).status_code == 206
    assert service.client.get(url, headers={**part, "If-Range": '"other"'}).status_code == 200


def test_head_tells_about_a_file_without_sending_it(service: Service, song: dict[str, Any]) -> None:
    """HEAD returns the headers of GET and no body."""
    answer = service.client.head(f"/v1/jobs/{song['id']}/audio")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == song["audio"][0]["bytes"]


def test_audio_of_an_unfinished_or_missing_variation_is_an_answer(service: Service, song: dict[str, Any]) -> None:
    """A job without audio answers 409, and a variation that the job does not have answers 404."""
    waiting = service.submit(model="asleep")
    answer = service.client.get(f"/v1/jobs/{waiting['id']}/audio")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert service.client.get(f"/v1/jobs/{song['id']}/audio/5").status_code == 404
    service.client.delete(f"/v1/jobs/{waiting['id']}")

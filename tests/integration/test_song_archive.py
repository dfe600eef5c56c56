"""All songs of a job in one zip file."""

import asyncio
import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from serve_app.api.song_archive import archive_bytes, archive_chunks
from serve_app.artifacts import Artifacts
from serve_app.jobs import Job, StoredAudio
from serve_app.store import Store
from tests.support.queue import claim, submit
from tests.support.running import SONG, Service, running

GIB = 1024**3


def archive_of(service: Service, job: dict[str, Any]) -> ZipFile:
    answer = service.client.get(job["links"]["songs"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip"), answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    return ZipFile(io.BytesIO(answer.content))


def test_the_zip_file_has_every_song_of_a_job(service: Service, song: dict[str, Any]) -> None:
    """Each is the file that is downloaded alone, under the same name, and not compressed."""
    archive = archive_of(service, song)

    names = archive.namelist()
    songs = [service.client.get(file["url"]) for file in song["audio"]]
    assert archive.testzip() is None
    assert [archive.read(name) for name in names] == [answer.content for answer in songs]
    assert [f'inline; filename="{name}"' for name in names] == [
        answer.headers["content-disposition"] for answer in songs
    ]
    assert {entry.compress_type for entry in archive.infolist()} == {ZIP_STORED}


def test_the_zip_file_is_named_by_the_title(service: Service) -> None:
    """Names in other scripts are in UTF-8, in the header and inside."""
    job = service.ended(service.submit(**{**SONG, "title": "Café – 雨"})["id"])

    answer = service.client.get(job["links"]["songs"])

    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"Cafe.zip\"; filename*=UTF-8''Caf%C3%A9%20%E2%80%93%20%E9%9B%A8.zip"
    )
    assert ZipFile(io.BytesIO(answer.content)).namelist() == ["Café – 雨-7.flac"]


def test_head_tells_about_the_zip_file_without_sending_it(service: Service, song: dict[str, Any]) -> None:
    """HEAD has the headers of GET and no body."""
    sent = service.client.get(song["links"]["songs"])

    asked = service.client.head(song["links"]["songs"])

    assert (asked.status_code, asked.content) == (200, b"")
    for name in ("content-length", "content-type", "content-disposition"):
        assert asked.headers[name] == sent.headers[name]


def test_a_job_without_all_its_files_has_no_zip_file(service: Service) -> None:
    """One that waits answers 409, one with a missing file 404, and one whose songs were removed 410."""
    waiting = service.submit(model="asleep")
    job = service.ended(service.submit(**SONG, variations=2)["id"])
    service.artifacts.delete([service.store.jobs.get(job["id"]).audio[1].key])

    unfinished = service.client.get(waiting["links"]["songs"])
    incomplete = service.client.get(job["links"]["songs"])
    service.store.retention.mark_audio_gone([job["id"]])
    gone = service.client.get(job["links"]["songs"])

    assert (unfinished.status_code, unfinished.json()["code"]) == (409, "conflict")
    assert (incomplete.status_code, incomplete.json()["code"]) == (404, "not_found")
    assert (gone.status_code, gone.json()["code"]) == (410, "audio_expired")


def test_a_zip_file_does_not_take_all_room_for_downloads(tmp_path: Path) -> None:
    """One with more than a key's part of it is refused; its files can be downloaded one by one."""
    with running(tmp_path, api={"download_bytes_per_key": 10_000}) as service:
        job = service.ended(service.submit(**SONG, variations=2)["id"])
        whole = service.client.get(job["links"]["songs"])
        alone = [service.client.get(file["url"]).status_code for file in job["audio"]]

    assert (whole.status_code, whole.json()["code"]) == (409, "conflict")
    assert "api.download_bytes_per_key" in whole.json()["detail"]
    assert alone == [200, 200]


def test_a_zip_file_of_more_than_2_gib_is_sent_in_small_chunks(
    sqlite_store: Store, artifacts: Artifacts, tmp_path: Path
) -> None:
    """Its size is known before it is written, and no chunk is larger than what is read of a song at a time."""
    submit(sqlite_store)
    job = with_songs(claim(sqlite_store), tmp_path / "audio", count=9, size=GIB // 4)

    sizes = asyncio.run(chunk_sizes(job, artifacts))

    assert sum(sizes) == archive_bytes(job) > 9 * GIB // 4
    assert max(sizes) < 1024**2 + 1024


def with_songs(job: Job, folder: Path, count: int, size: int) -> Job:
    """The job with songs of zeros, whose files take no place on the disk."""
    songs = [
        StoredAudio(f"{job.id}/1-w/{n}.wav", "wav", 600.0, 48_000, 2, size, "0" * 64, seed=n) for n in range(count)
    ]
    for song in songs:
        file = folder / song.key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.truncate(file, size)
    return replace(job, audio=tuple(songs))


async def chunk_sizes(job: Job, artifacts: Artifacts) -> list[int]:
    return [len(chunk) async for chunk in archive_chunks(job, artifacts)]

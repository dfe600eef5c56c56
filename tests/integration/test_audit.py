"""What `audit` removes and corrects: files without a job, and jobs without their files."""

import os
import time
from pathlib import Path

from serve_app.artifacts import Artifacts
from serve_app.background.custody import PAGE
from serve_app.background.janitor import audit
from serve_app.store import Store
from serve_app.store.tables import jobs
from tests.support.queue import stored_audio
from tests.support.retention import KEPT, always, claimed, key_of, keys, put, song, write


def test_files_of_no_job_are_removed(store: Store, artifacts: Artifacts) -> None:
    """Files of deleted jobs and unpublished attempts are removed; published files stay."""
    deleted = song(store, artifacts)
    store.jobs.delete(deleted.id)
    published = song(store, artifacts, files=2)
    put(artifacts, published, attempt=7)
    put(artifacts, published, index=2)

    audit(store, artifacts, KEPT, always)

    assert keys(artifacts) == {key_of(published, 0), key_of(published, 1)}
    assert store.jobs.get(published.id) == published


def test_files_of_the_attempt_under_way_are_never_removed(store: Store, artifacts: Artifacts) -> None:
    """Files that a running attempt has stored stay, however old they are; those of its lost attempts are removed."""
    job = claimed(store)
    first = put(artifacts, job)
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(lease_until=0))
    store.time_limits.enforce(run_limit_s=3600)
    again = store.claims.take("w", "m", 60)
    assert again is not None
    second = put(artifacts, again)

    audit(store, artifacts, KEPT, always)

    assert keys(artifacts) == {second}
    assert first != second
    assert store.claims.publish(again, audio=[stored_audio(second)], timing={"gpu_s": 1.0}, warnings=[])


def test_a_young_file_is_left_alone(store: Store, artifacts: Artifacts) -> None:
    """Only files older than orphans_s are removed, so a freshly restored database loses no audio yet."""
    job = song(store, artifacts)
    store.jobs.delete(job.id)
    audit(store, artifacts, KEPT.model_copy(update={"orphans_s": 3600}), always)
    assert keys(artifacts) == {key_of(job)}


def test_a_file_is_as_old_as_the_store_says(artifacts: Artifacts, tmp_path: Path, store: Store) -> None:
    """A file's age counts from the time at which the audio store wrote it."""
    job = song(store, artifacts)
    store.jobs.delete(job.id)
    os.utime(tmp_path / "audio" / key_of(job), (time.time() - 7200, time.time() - 7200))
    audit(store, artifacts, KEPT.model_copy(update={"orphans_s": 3600}), always)
    assert keys(artifacts) == set()


def test_a_row_whose_files_are_gone_says_so(store: Store, artifacts: Artifacts) -> None:
    """A job that lost all its files is marked; one that lost some of them is not."""
    lost, partly, whole = (song(store, artifacts, files=2) for _ in range(3))
    artifacts.delete([key_of(lost, 0), key_of(lost, 1), key_of(partly, 0)])

    audit(store, artifacts, KEPT, always)

    assert store.jobs.get(lost.id).audio_gone_at is not None
    assert store.jobs.get(partly.id).audio_gone_at is None
    assert store.jobs.get(whole.id).audio_gone_at is None
    assert keys(artifacts) == {key_of(partly, 1), key_of(whole, 0), key_of(whole, 1)}


def test_audio_that_comes_back_is_found_again(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """If a disk is not mounted during one audit, the next one corrects the rows, and no file is removed."""
    made = [song(store, artifacts) for _ in range(3)]
    (tmp_path / "audio").rename(tmp_path / "away")
    (tmp_path / "audio").mkdir()
    audit(store, artifacts, KEPT, always)
    assert all(store.jobs.get(job.id).audio_gone_at for job in made)

    (tmp_path / "audio").rmdir()
    (tmp_path / "away").rename(tmp_path / "audio")
    audit(store, artifacts, KEPT, always)

    assert not any(store.jobs.get(job.id).audio_gone_at for job in made)
    assert keys(artifacts) == {key_of(job) for job in made}


def test_other_peoples_files_are_left_alone(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """A file whose name does not have Sophia's form is never touched."""
    for name in ("README", "x/1/notes.txt", "a/b/c/d"):
        (tmp_path / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "audio" / name).write_text("mine")
    audit(store, artifacts, KEPT, always)
    assert (tmp_path / "audio" / "x/1/notes.txt").read_text() == "mine"
    assert (tmp_path / "audio" / "a/b/c/d").read_text() == "mine"


def test_what_a_killed_writer_left_is_swept(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """An unfinished temporary file, which listings hide, is removed too."""
    job = song(store, artifacts)
    leftover = tmp_path / "audio" / f"{key_of(job)}#1"
    leftover.write_bytes(b"half")
    audit(store, artifacts, KEPT, always)
    assert not leftover.exists()
    assert keys(artifacts) == {key_of(job)}


def test_a_listing_survives_the_removal_of_what_it_lists(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """One audit removes several pages of orphans together with their folders."""
    write(tmp_path, *(f"gone-{n}/1/0.mp3" for n in range(3 * PAGE + 7)))
    audit(store, artifacts, KEPT, always)
    assert keys(artifacts) == set()

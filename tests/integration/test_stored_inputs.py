"""Uploaded recordings in the database and the audio store: owners, expiry, quotas, deletion and the janitor."""

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa

import serve_app.store.jobs
from serve_app.artifacts import Artifacts
from serve_app.background import custody, janitor
from serve_app.errors import Conflict, NotFound, QuotaExceeded
from serve_app.jobs import Job, input_key, new_id
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.store.inputs import StoredInput, hold
from serve_app.store.recordings import jobs_with_needed_songs, needed_inputs
from serve_app.store.tables import inputs, jobs
from tests.support.helpers import eventually
from tests.support.retention import KEPT, always, keys, song
from tests.support.stored_inputs import ROOM, TTL_S, add, end, new_input, queue_with


def test_an_owner_has_one_input_for_each_content(store: Store) -> None:
    """The second upload of the same bytes finds the first one's input, also when that has expired; other owners have their own."""
    first = add(store, age_s=2 * TTL_S)
    again, is_new = store.inputs.add(new_input(), TTL_S, ROOM)
    other, others_is_new = store.inputs.add(new_input(owner="you"), TTL_S, ROOM)
    assert (again.upload, is_new) == (first.upload, False)
    assert again.expires_at > first.expires_at - 1
    assert others_is_new
    assert other.upload != first.upload


def test_what_belongs_to_others_or_has_expired_is_not_found(store: Store) -> None:
    """The answer is the same as for what was never there."""
    add(store, owner="you")
    add(store, letter="b", age_s=2 * TTL_S)
    for letter in "abc":
        with pytest.raises(NotFound):
            store.inputs.get("me", letter * 64)
    with pytest.raises(NotFound):
        store.inputs.delete("me", "a" * 64)
    assert store.inputs.page("me", None, 10) == []


def test_inputs_are_listed_page_by_page(store: Store) -> None:
    """Newest first, each once."""
    added = [add(store, letter=letter) for letter in "abcde"]
    seen = []
    before = None
    while page := store.inputs.page("me", before, 2):
        seen += [found.sha256 for found in page]
        before = (page[-1].created_at, page[-1].sha256)
    assert seen == [one.sha256 for one in sorted(added, key=lambda one: (one.created_at, one.sha256), reverse=True)]


def test_the_inputs_of_one_key_are_limited(store: Store) -> None:
    """A further input beyond the limit is refused; another owner has room. A small one counts as 64 KiB."""
    store.inputs.add(new_input(size=600), TTL_S, 150_000)
    with pytest.raises(QuotaExceeded, match="65536 bytes, this one takes 100000, and the maximum is 150000"):
        store.inputs.add(new_input(letter="b", size=100_000), TTL_S, 150_000)
    _, is_new = store.inputs.add(new_input("you", "b", size=100_000), TTL_S, 150_000)
    assert is_new
    assert store.inputs.bytes_of("me") == 65_536


@pytest.mark.parametrize("field", ["source", "reference"])
def test_an_input_stays_while_a_job_needs_it(store: Store, artifacts: Artifacts, field: str) -> None:
    """Neither its owner nor the janitor deletes an input of a queued job; afterwards both can."""
    needed = add(store, artifacts, age_s=2 * TTL_S)
    unused = add(store, artifacts, letter="b", age_s=2 * TTL_S)
    others = add(store, artifacts, owner="you", age_s=2 * TTL_S)
    fresh = add(store, artifacts, letter="c")
    job = queue_with(store, **{field: f"input:{needed.sha256}"})
    with pytest.raises(Conflict, match="needs it"):
        store.inputs.delete("me", needed.sha256)
    janitor.expire(store, artifacts, KEPT, always)
    assert keys(artifacts) == {needed.key, fresh.key}
    end(store, job)
    janitor.expire(store, artifacts, KEPT, always)
    assert keys(artifacts) == {fresh.key}
    assert store.inputs.delete("me", fresh.sha256).key == fresh.key
    assert store.inputs.uploads([one.upload for one in (needed, unused, others, fresh)]) == set()


def test_a_deletion_waits_for_a_submission_that_names_the_input(
    migrated_postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion begins while the submission's transaction holds the input, and is refused when that has committed."""
    with closing(Store(migrated_postgresql_url)) as store, ThreadPoolExecutor(1) as others:
        kept = add(store)
        deletions: list[Future[StoredInput]] = []

        def hold_and_meet_a_deletion(connection: sa.Connection, owner: str, ids: Collection[str], ttl_s: float) -> None:
            hold(connection, owner, ids, ttl_s)
            deletions.append(others.submit(store.inputs.delete, "me", kept.sha256))
            waits = sa.text("select count(*) from pg_locks where not granted")
            eventually(lambda: connection.execute(waits).scalar_one())

        monkeypatch.setattr(serve_app.store.jobs, "hold", hold_and_meet_a_deletion)
        request = MusicRequest(prompt="x", model="m", task_type="cover", source=f"input:{kept.sha256}")
        store.jobs.submit(request, owner="me", deadline_s=600, max_attempts=3)
        with pytest.raises(Conflict, match="needs it"):
            deletions[0].result()
        assert store.inputs.get("me", kept.sha256) is not None


def test_a_deletion_waits_for_a_submission_that_names_the_jobs_song(
    migrated_postgresql_url: str, monkeypatch: pytest.MonkeyPatch, artifacts: Artifacts
) -> None:
    """As with an input; and a submission that names a song of a deleted job is refused."""
    with closing(Store(migrated_postgresql_url)) as store, ThreadPoolExecutor(1) as others:
        source = song(store, artifacts)
        deletions: list[Future[Job]] = []
        hold_recordings = serve_app.store.jobs._hold_recordings

        def hold_and_meet_a_deletion(connection: sa.Connection, job: Job, input_ttl_s: float) -> None:
            hold_recordings(connection, job, input_ttl_s)
            deletions.append(others.submit(store.jobs.delete, source.id))
            waits = sa.text("select count(*) from pg_locks where not granted")
            eventually(lambda: connection.execute(waits).scalar_one())

        monkeypatch.setattr(serve_app.store.jobs, "_hold_recordings", hold_and_meet_a_deletion)
        request = MusicRequest(prompt="x", model="m", task_type="cover", source=f"job:{source.id}/0")
        made, _ = store.jobs.submit(request, owner="", deadline_s=600, max_attempts=3)
        with pytest.raises(Conflict, match="makes a song from its songs"):
            deletions[0].result()
        monkeypatch.undo()
        end(store, made)
        store.jobs.delete(source.id)
        with pytest.raises(NotFound, match=f"The songs of job {source.id} have been deleted"):
            store.jobs.submit(request, owner="", deadline_s=600, max_attempts=3)


@pytest.mark.parametrize("retention", [{"results_s": 0.0}, {"rows_s": 0.0}])
def test_a_song_stays_while_a_job_needs_it(store: Store, artifacts: Artifacts, retention: dict[str, float]) -> None:
    """A song that is the source of a queued job outlives its retention time; other songs do not."""
    source = song(store, artifacts, age_s=10)
    other = song(store, artifacts, age_s=10)
    job = queue_with(store, owner="", source=f"job:{source.id}/0")
    janitor.expire(store, artifacts, KEPT.model_copy(update=retention), always)
    assert keys(artifacts) == {source.audio[0].key}
    assert other.audio
    end(store, job)
    janitor.expire(store, artifacts, KEPT.model_copy(update=retention), always)
    assert keys(artifacts) == set()


def test_an_audit_removes_files_of_uploads_that_were_never_finished(store: Store, artifacts: Artifacts) -> None:
    """An input's file stays, and one without a row goes."""
    kept = add(store, artifacts)
    lost = input_key(new_id(), "f" * 64)
    artifacts.put(lost, b"RIFF")
    found = janitor.count_files(store, artifacts, KEPT)
    janitor.audit(store, artifacts, KEPT, always)
    assert (found.files, found.jobs, found.unknown, found.orphans) == (2, 0, 1, 1)
    assert keys(artifacts) == {kept.key}


def test_inputs_do_not_stand_for_lost_songs(store: Store, artifacts: Artifacts) -> None:
    """A store that holds inputs but has lost the songs is not taken for this database's."""
    songs = [song(store, artifacts) for _ in range(custody.FEW + 1)]
    artifacts.delete(file.key for job in songs for file in job.audio)
    for letter in "abcdef0123456789":
        add(store, artifacts, letter=letter)
    assert "of the 11 jobs with songs in this database, it holds the songs of only 0" in custody.claim(
        store, artifacts, 0.1, always
    )


def test_the_queue_is_read_once_and_not_for_each_row(store: Store) -> None:
    """What jobs need is a list that the database makes once for a statement, however many rows might be deleted."""
    needed = {
        inputs: sa.tuple_(inputs.c.owner, inputs.c.sha256).in_(needed_inputs()),
        jobs: sa.tuple_(jobs.c.owner, jobs.c.id).in_(jobs_with_needed_songs()),
    }
    with store.database.read() as connection:
        prefix = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        for table, condition in needed.items():
            query = sa.select(table.c.owner).where(~condition)
            text = query.compile(connection, compile_kwargs={"literal_binds": True})
            plan = " ".join(str(row) for row in connection.execute(sa.text(f"{prefix} {text}")))
            assert "CORRELATED" not in plan
            assert connection.dialect.name == "sqlite" or "hashed SubPlan" in plan, plan


def test_a_deletion_reads_the_queue_of_its_owner_only(sqlite_store: Store) -> None:
    """With 100,000 jobs of others in the queue, reading all of it would take half a second of a write transaction."""
    for selected in (needed_inputs("me"), jobs_with_needed_songs("me")):
        with sqlite_store.database.read() as connection:
            text = selected.compile(connection, compile_kwargs={"literal_binds": True})
            plan = [str(row) for row in connection.execute(sa.text(f"EXPLAIN QUERY PLAN {text}"))]
        assert [step for step in plan if "live USING INDEX jobs_live_by_owner (owner=?)" in step], plan
        assert not [step for step in plan if "SCAN live" in step], plan

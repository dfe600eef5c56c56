"""Retention and the janitor, with real files and on both databases."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from serve_app.artifacts import Artifacts
from serve_app.background import custody, janitor
from serve_app.background.custody import PAGE
from serve_app.background.janitor import Janitor, audit, expire
from serve_app.config import RetentionArgs
from serve_app.errors import GenerationError, NotFound
from serve_app.jobs import Job, Status
from serve_app.music import MusicRequest
from serve_app.ops.cli import main
from serve_app.store import Store
from serve_app.store.clock import now
from serve_app.store.tables import jobs, leases
from tests.support.helpers import eventually
from tests.support.queue import stored_audio
from tests.support.running import running, simulated

DAY = 86_400.0
KEPT = RetentionArgs(results_s=7 * DAY, rows_s=30 * DAY, orphans_s=0, orphans_share=1, expiry_share=1)


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """An empty folder of audio."""
    return Artifacts((tmp_path / "audio").as_uri())


def always() -> bool:
    return True


def claimed(store: Store) -> Job:
    request = MusicRequest(prompt="piano", model="m", seed=1)
    store.jobs.submit(request, owner="", deadline_s=600, max_attempts=3)
    job = store.claims.take("w", "m", 60)
    assert job is not None
    return job


def put(artifacts: Artifacts, job: Job, attempt: int | None = None, index: int = 0) -> str:
    key = f"{job.id}/{job.attempt if attempt is None else attempt}/{index}.flac"
    artifacts.put(key, b"fLaC")
    return key


def song(store: Store, artifacts: Artifacts, files: int = 1, age_s: float = 0) -> Job:
    """A job that succeeded so many seconds ago, with its files."""
    job = claimed(store)
    keys = [put(artifacts, job, index=index) for index in range(files)]
    assert store.claims.publish(job, audio=[stored_audio(key) for key in keys], timing={"gpu_s": 1.0}, warnings=[])
    return aged(store, job, age_s)


def aged(store: Store, job: Job, age_s: float) -> Job:
    with store.database.write() as connection:
        finished_at = jobs.c.finished_at - age_s
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(finished_at=finished_at))
    return store.jobs.get(job.id)


def keys(artifacts: Artifacts) -> set[str]:
    return {file.key for file in artifacts.list()}


def key_of(job: Job, index: int = 0) -> str:
    return job.audio[index].key


# --- Retention --------------------------------------------------------------------------------------------------------


def test_audio_goes_when_its_time_is_over_and_the_job_stays(store: Store, artifacts: Artifacts) -> None:
    """Songs older than results_s lose their files and say so; younger ones keep them."""
    old = [song(store, artifacts, files=2, age_s=8 * DAY) for _ in range(3)]
    young = song(store, artifacts, age_s=6 * DAY)

    expire(store, artifacts, KEPT, always)

    assert keys(artifacts) == {key_of(young)}
    for job in old:
        kept = store.jobs.get(job.id)
        assert kept.audio_gone_at is not None
        assert kept.version > job.version
        assert (kept.status, kept.audio, kept.timing) == (Status.SUCCEEDED, job.audio, job.timing)
    assert store.jobs.get(young.id) == young


def test_rows_go_when_their_time_is_over(store: Store, artifacts: Artifacts) -> None:
    """Jobs older than rows_s are forgotten with whatever they have, however they ended; those under way never."""
    old = song(store, artifacts, age_s=31 * DAY)
    failed = claimed(store)
    store.claims.fail(failed, GenerationError("no"))
    aged(store, failed, 31 * DAY)
    young = song(store, artifacts, age_s=1)
    running_one = claimed(store)

    expire(store, artifacts, KEPT, always)

    for job in (old, failed):
        with pytest.raises(NotFound):
            store.jobs.get(job.id)
    assert store.jobs.get(young.id) == young
    assert store.jobs.get(running_one.id).status is Status.RUNNING
    assert keys(artifacts) == {key_of(young)}


def test_a_job_that_runs_again_meanwhile_is_not_forgotten(store: Store) -> None:
    """A job that left its final state after it was found to be old stays."""
    job = claimed(store)
    store.claims.fail(job, GenerationError("no"))
    aged(store, job, 31 * DAY)
    [found] = store.retention.ended_long_ago(KEPT.rows_s, 10)
    store.jobs.retry(job.id, max_attempts=3)

    assert store.retention.forget([found.id], KEPT.rows_s) == 0

    assert store.jobs.get(job.id).status is Status.QUEUED


def test_more_than_a_page_is_worked_through(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """Everything that is due goes, however many pages that takes."""
    many(store, artifacts, tmp_path, 2 * PAGE + 1, age_s=8 * DAY)
    expire(store, artifacts, KEPT, always)
    assert keys(artifacts) == set()
    assert store.retention.with_old_audio(0, 1) == []


@pytest.mark.fault("B3")
def test_a_wrong_clock_costs_a_share_and_not_everything(
    store: Store,
    artifacts: Artifacts,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All songs are over their time at once: a round takes its share and says what stays, and an operator's word the rest."""
    many(store, artifacts, tmp_path, 5 * PAGE, age_s=8 * DAY)
    few = KEPT.model_copy(update={"expiry_share": 0.3})
    custody.claim(store, artifacts, 0.1, always)

    held_back = expire(store, artifacts, few, always)
    left = len(keys(artifacts))
    said = store.installation.held_back()
    expire(store, artifacts, few, always)
    after_two = len(keys(artifacts))
    monkeypatch.setenv("SOPHIA_DATABASE_URL", database_url)
    monkeypatch.setenv("SOPHIA_ARTIFACTS_URL", (tmp_path / "audio").as_uri())
    monkeypatch.chdir(tmp_path)
    assert main(["artifacts", "expire"]) == 0
    counted = capsys.readouterr().out
    untouched = len(keys(artifacts))
    assert main(["artifacts", "expire", "--confirm"]) == 0

    assert (left, after_two, untouched) == (350, 245, 245)
    assert said == held_back
    assert held_back.startswith(
        "The retention of 350 songs and 0 jobs is over, but they are kept for now: the janitor removes at most 30%"
    )
    assert counted.startswith("The retention of 245 songs and 0 jobs is over")
    assert keys(artifacts) == set()
    assert store.installation.held_back() == ""


@pytest.mark.fault("B3")
def test_jobs_are_forgotten_a_share_at_a_time(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """The bound holds for jobs that are over altogether, too; what fits into the next round is not worth a word."""
    made = many(store, artifacts, tmp_path, 2 * PAGE + 1, age_s=31 * DAY)
    few = KEPT.model_copy(update={"expiry_share": 0.1})
    first = expire(store, artifacts, few, always)
    left = len(store.jobs.get_many([job.id for job in made]))
    second = expire(store, artifacts, few, always)
    rest = len(store.jobs.get_many([job.id for job in made]))

    assert "101 jobs" in first
    assert (left, rest) == (101, 1)
    assert second == ""


# --- Audit ------------------------------------------------------------------------------------------------------------


def test_files_of_no_job_are_removed(store: Store, artifacts: Artifacts) -> None:
    """What a deleted job or an attempt that was not published left behind goes; what is published stays."""
    deleted = song(store, artifacts)
    store.jobs.delete(deleted.id)
    published = song(store, artifacts, files=2)
    put(artifacts, published, attempt=7)
    put(artifacts, published, index=2)

    audit(store, artifacts, KEPT, always)

    assert keys(artifacts) == {key_of(published, 0), key_of(published, 1)}
    assert store.jobs.get(published.id) == published


def test_files_of_the_attempt_under_way_are_never_removed(store: Store, artifacts: Artifacts) -> None:
    """A file that a worker has stored and not yet published stays, however old it is; those of its lost attempts go."""
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
    """Only files older than orphans_s are removed: a database that was just restored from a backup costs nothing yet."""
    job = song(store, artifacts)
    store.jobs.delete(job.id)
    audit(store, artifacts, KEPT.model_copy(update={"orphans_s": 3600}), always)
    assert keys(artifacts) == {key_of(job)}


def test_a_file_is_as_old_as_the_store_says(artifacts: Artifacts, tmp_path: Path, store: Store) -> None:
    """Age is counted from when the file was written."""
    job = song(store, artifacts)
    store.jobs.delete(job.id)
    os.utime(tmp_path / "audio" / key_of(job), (time.time() - 7200, time.time() - 7200))
    audit(store, artifacts, KEPT.model_copy(update={"orphans_s": 3600}), always)
    assert keys(artifacts) == set()


def test_a_row_whose_files_are_gone_says_so(store: Store, artifacts: Artifacts) -> None:
    """A job that lost all its files is marked, one that lost some keeps the rest unmarked."""
    lost, partly, whole = (song(store, artifacts, files=2) for _ in range(3))
    artifacts.delete([key_of(lost, 0), key_of(lost, 1), key_of(partly, 0)])

    audit(store, artifacts, KEPT, always)

    assert store.jobs.get(lost.id).audio_gone_at is not None
    assert store.jobs.get(partly.id).audio_gone_at is None
    assert store.jobs.get(whole.id).audio_gone_at is None
    assert keys(artifacts) == {key_of(partly, 1), key_of(whole, 0), key_of(whole, 1)}


def test_audio_that_comes_back_is_found_again(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """A disk that is not mounted during one audit costs nothing: the next one corrects the rows, and no file is removed."""
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
    """A file whose name is none of ours is never touched."""
    for name in ("README", "x/1/notes.txt", "a/b/c/d"):
        (tmp_path / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "audio" / name).write_text("mine")
    audit(store, artifacts, KEPT, always)
    assert (tmp_path / "audio" / "x/1/notes.txt").read_text() == "mine"
    assert (tmp_path / "audio" / "a/b/c/d").read_text() == "mine"


def test_what_a_killed_writer_left_is_swept(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """An unfinished file, which no listing shows, goes too."""
    job = song(store, artifacts)
    leftover = tmp_path / "audio" / f"{key_of(job)}#1"
    leftover.write_bytes(b"half")
    audit(store, artifacts, KEPT, always)
    assert not leftover.exists()
    assert keys(artifacts) == {key_of(job)}


def test_a_listing_survives_the_removal_of_what_it_lists(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """Several pages of orphans, each in a folder of its own that goes with it, are removed in one audit."""
    write(tmp_path, *(f"gone-{n}/1/0.mp3" for n in range(3 * PAGE + 7)))
    audit(store, artifacts, KEPT, always)
    assert keys(artifacts) == set()


# --- Killed half way --------------------------------------------------------------------------------------------------

_WORK = """
import sys
from serve_app.artifacts import Artifacts
from serve_app.config import RetentionArgs
from serve_app.background.janitor import audit, expire
from serve_app.store import Store
from tests.support.queue import stored_audio

work, database, folder, pages = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
asked = 0

def go_on():
    global asked
    asked += 1
    if asked > pages:
        print("half way", flush=True)
        sys.stdin.read()  # until the kill
    return True

retention = RetentionArgs(results_s=604800, rows_s=2592000, orphans_s=0, orphans_share=1, expiry_share=1)
{"expire": expire, "audit": audit}[work](Store(database), Artifacts(folder), retention, go_on)
"""


@pytest.mark.parametrize(("work", "pages"), [("expire", 2), ("expire", 3), ("audit", 6), ("audit", 7), ("audit", 10)])
def test_a_janitor_that_is_killed_half_way_is_made_good_by_the_next(
    store: Store, artifacts: Artifacts, database_url: str, tmp_path: Path, work: str, pages: int
) -> None:
    """After kill -9 between two pages, the next run ends with every file owned and every claim of audio true."""
    count = 2 * PAGE + 20
    made = [*many(store, artifacts, tmp_path, count, 8 * DAY if work == "expire" else 0), song(store, artifacts)]
    if work == "audit":
        write(tmp_path, *(f"gone-{n}/1/0.mp3" for n in range(count)))
        artifacts.delete([key_of(job) for job in made[: count // 2]])
    at_first = untrue(store, artifacts, made)

    run_and_kill(work, database_url, (tmp_path / "audio").as_uri(), pages)
    half_way = untrue(store, artifacts, made)
    (expire if work == "expire" else audit)(store, artifacts, KEPT, always)

    assert keys(artifacts) == {key_of(job) for job in (made[-1:] if work == "expire" else made[count // 2 :])}
    assert untrue(store, artifacts, made) == set()
    assert work == "expire" or at_first > half_way > set()
    assert store.retention.with_old_audio(KEPT.results_s, 1) == []


def untrue(store: Store, artifacts: Artifacts, made: list[Job]) -> set[str]:
    """Files without a row that claims them, and claims without a file."""
    claims = {key_of(job) for job in store.jobs.get_many([job.id for job in made]).values() if not job.audio_gone_at}
    return claims ^ keys(artifacts)


def many(store: Store, artifacts: Artifacts, folder: Path, count: int, age_s: float) -> list[Job]:
    """So many songs, by copying one."""
    first = song(store, artifacts, age_s=age_s)
    with store.database.write() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == first.id)).mappings().one()
        ids = [f"{first.id}-{n:04}" for n in range(count - 1)]
        copies = [{**row, "id": job, "audio": [stored_audio(f"{job}/1/0.flac").to_json()]} for job in ids]
        connection.execute(jobs.insert(), copies)
    write(folder, *(f"{job}/1/0.flac" for job in ids))
    return sorted([first, *store.jobs.get_many(ids).values()], key=lambda job: job.id)


def write(folder: Path, *names: str) -> None:
    """Files as Artifacts keeps them, without the time that it takes to put them onto the disk itself."""
    for name in names:
        (folder / "audio" / name).parent.mkdir(parents=True)
        (folder / "audio" / name).write_bytes(b"x")


def run_and_kill(work: str, database_url: str, folder: str, pages: int) -> None:
    words = [sys.executable, "-c", _WORK, work, database_url, folder, str(pages)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.kill()


# --- One at a time ----------------------------------------------------------------------------------------------------


def test_a_lease_has_one_holder_until_it_ends_or_rests(store: Store) -> None:
    """It can be extended by its holder, is taken over when it has run out, and rests for everybody."""
    assert store.leases.take("a", "one", 60)
    assert store.leases.take("a", "one", 0)
    assert store.leases.take("a", "two", 60)
    assert not store.leases.take("a", "one", 60)
    assert store.leases.take("b", "one", 60)
    store.leases.release("a", "one", 0)  # not its to give up
    assert not store.leases.take("a", "one", 60)
    store.leases.release("a", "two", 60)
    assert not store.leases.take("a", "two", 60)


def test_one_of_many_gets_the_lease(store: Store, database_url: str) -> None:
    """Eight that ask at once for a lease that nobody ever had: one has it."""
    together = threading.Barrier(8)
    got: list[bool] = []

    def ask(n: int) -> None:
        mine = Store(database_url)
        together.wait()
        got.append(mine.leases.take("a", str(n), 60))
        mine.close()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A janitor that looks often."""
    monkeypatch.setattr(janitor, "_LOOK_S", 0.02)


def test_one_janitor_at_a_time_does_the_work_and_then_it_rests(store: Store, artifacts: Artifacts, eager: None) -> None:
    """Three janitors start: what is old and what is orphaned goes, and nobody starts again before the next round is due."""
    old = song(store, artifacts, age_s=8 * DAY)
    artifacts.put("gone/1/0.mp3", b"x")
    janitors = [Janitor(store, artifacts, KEPT) for _ in range(3)]
    for one in janitors:
        one.start()
    try:
        eventually(lambda: keys(artifacts) == set())
        eventually(lambda: resting(store) == {"janitor", "audit"})
        assert store.jobs.get(old.id).audio_gone_at is not None
        assert not store.leases.take("janitor", "me", 60)
    finally:
        for one in janitors:
            one.close()


def resting(store: Store) -> set[str]:
    """The leases that nobody has and nobody can take yet."""
    with store.database.read() as connection:
        return set(
            connection.execute(sa.select(leases.c.name).where(leases.c.holder == "", leases.c.until > now())).scalars()
        )


def test_a_janitor_waits_for_a_database_that_is_not_ready(database_url: str, artifacts: Artifacts, eager: None) -> None:
    """Without its tables a janitor goes on asking, and works as soon as they are there."""
    store = Store(database_url)
    one = Janitor(store, artifacts, KEPT)
    one.start()
    try:
        store.migrate()
        eventually(lambda: artifacts.mark() == store.installation.id())
    finally:
        one.close()
        store.close()


# --- Through the API --------------------------------------------------------------------------------------------------


def test_a_client_learns_that_its_audio_is_gone(tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """When results_s is over, the files answer 410 with a code of their own, and the job says since when."""
    monkeypatch.setattr(janitor, "EXPIRE_EVERY_S", 0.05)
    retention = {"results_s": 0}
    with running(tmp_path, {"ace-step": simulated()}, retention=retention) as service:
        job = service.submit()
        gone = eventually(lambda: _gone(service.client, job["id"]))
        assert gone.json()["code"] == "audio_expired"
        view = service.job(job["id"])
    assert view["state"] == "succeeded"
    assert view["audio_gone_at"] >= view["finished_at"]
    assert len(view["audio"]) == 1


def _gone(client: httpx.Client, job: str) -> httpx.Response | None:
    answer = client.get(f"/v1/jobs/{job}/audio")
    return answer if answer.status_code == 410 else None

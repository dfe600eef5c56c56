"""The janitor's thread: killed midway, one at a time, and its effect on clients."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from serve_app.artifacts import Artifacts
from serve_app.background import janitor
from serve_app.background.custody import PAGE
from serve_app.background.janitor import Janitor, audit, expire
from serve_app.jobs import Job
from serve_app.store import Store
from serve_app.store.clock import now
from serve_app.store.tables import leases
from tests.support.helpers import eventually
from tests.support.retention import DAY, KEPT, always, key_of, keys, many, song, write
from tests.support.running import running, simulated

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


@pytest.mark.parametrize(
    ("work", "pages"),
    [
        ("expire", 2),
        pytest.param("expire", 3, marks=pytest.mark.long),
        pytest.param("audit", 6, marks=pytest.mark.long),
        ("audit", 7),
        pytest.param("audit", 10, marks=pytest.mark.long),
    ],
)
def test_a_janitor_that_is_killed_half_way_is_made_good_by_the_next(
    store: Store, artifacts: Artifacts, store_url: str, tmp_path: Path, work: str, pages: int
) -> None:
    """After kill -9 between two pages, the next run leaves no file without a job and no job with a missing file."""
    count = 2 * PAGE + 20
    made = [*many(store, artifacts, tmp_path, count, 8 * DAY if work == "expire" else 0), song(store, artifacts)]
    if work == "audit":
        write(tmp_path, *(f"gone-{n}/1/0.mp3" for n in range(count)))
        artifacts.delete([key_of(job) for job in made[: count // 2]])
    at_first = untrue(store, artifacts, made)

    run_and_kill(work, store_url, (tmp_path / "audio").as_uri(), pages)
    half_way = untrue(store, artifacts, made)
    (expire if work == "expire" else audit)(store, artifacts, KEPT, always)

    assert keys(artifacts) == {key_of(job) for job in (made[-1:] if work == "expire" else made[count // 2 :])}
    assert untrue(store, artifacts, made) == set()
    assert work == "expire" or at_first > half_way > set()
    assert store.retention.with_old_audio(KEPT.results_s, 1) == []


def untrue(store: Store, artifacts: Artifacts, made: list[Job]) -> set[str]:
    """Files that no row refers to, and rows whose files are missing."""
    claims = {key_of(job) for job in store.jobs.get_many([job.id for job in made]).values() if not job.audio_gone_at}
    return claims ^ keys(artifacts)


def run_and_kill(work: str, database_url: str, folder: str, pages: int) -> None:
    words = [sys.executable, "-c", _WORK, work, database_url, folder, str(pages)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.kill()


# --- One at a time ----------------------------------------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A janitor with a short period."""
    monkeypatch.setattr(janitor, "_LOOK_S", 0.02)


def test_one_janitor_at_a_time_does_the_work_and_then_it_rests(store: Store, artifacts: Artifacts, eager: None) -> None:
    """Of three janitors one removes old and orphaned files, and none starts again before the next round is due."""
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
    """The leases that are free but cannot be taken yet."""
    with store.database.read() as connection:
        return set(
            connection.execute(sa.select(leases.c.name).where(leases.c.holder == "", leases.c.until > now())).scalars()
        )


def test_a_janitor_waits_for_a_database_that_is_not_ready(database_url: str, artifacts: Artifacts, eager: None) -> None:
    """A janitor retries until its database has tables, and then works."""
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
    """After results_s the files answer 410, the job shows when they were removed, and its request can be posted again."""
    monkeypatch.setattr(janitor, "EXPIRE_EVERY_S", 0.05)
    retention = {"results_s": 0}
    with running(tmp_path, {"ace-step": simulated()}, retention=retention) as service:
        job = service.submit()
        gone = eventually(lambda: _gone(service.client, job["id"]))
        assert gone.json()["code"] == "audio_expired"
        assert "POST the job's `request`" in gone.json()["detail"]
        view = service.job(job["id"])
        again = service.client.post("/v1/jobs", json=view["request"])
    assert again.status_code == 202
    assert again.json()["request"] == view["request"]
    assert view["request"]["seed"] is not None
    assert view["state"] == "succeeded"
    assert view["audio_gone_at"] >= view["finished_at"]
    assert len(view["audio"]) == 1


def _gone(client: httpx.Client, job: str) -> httpx.Response | None:
    answer = client.get(f"/v1/jobs/{job}/audio")
    return answer if answer.status_code == 410 else None

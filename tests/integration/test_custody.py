"""Ownership of an audio store: nothing is removed from a store that is not proven to belong to this database."""

import os
import shutil
import time
from pathlib import Path

import pytest

from serve_app.artifacts import Artifacts
from serve_app.background import custody, janitor
from serve_app.background.janitor import Janitor, audit
from serve_app.config import RetentionArgs
from serve_app.errors import ConfigurationError
from serve_app.jobs import Job, new_id
from serve_app.music import MusicRequest
from serve_app.ops.cli import main
from serve_app.store import Store
from tests.support.helpers import eventually
from tests.support.queue import stored_audio
from tests.support.running import running, simulated

DAY = 86_400.0
KEPT = RetentionArgs(orphans_s=0)


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """An empty audio folder."""
    return Artifacts((tmp_path / "audio").as_uri())


def always() -> bool:
    return True


def keys(artifacts: Artifacts) -> set[str]:
    return {file.key for file in artifacts.list()}


def strangers(artifacts: Artifacts, count: int) -> set[str]:
    """The songs of another database."""
    made = {f"{new_id()}/1/0.mp3" for _ in range(count)}
    for key in made:
        artifacts.put(key, b"song")
    return made


def song(store: Store, artifacts: Artifacts) -> Job:
    store.jobs.submit(MusicRequest(prompt="piano", model="m", seed=1), owner="", deadline_s=600, max_attempts=3)
    job = store.claims.take("w", "m", 60)
    assert job is not None
    key = f"{job.id}/1/0.mp3"
    artifacts.put(key, b"song")
    assert store.claims.publish(job, audio=[stored_audio(key)], timing={"gpu_s": 1.0}, warnings=[])
    return job


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A janitor with a short period."""
    monkeypatch.setattr(janitor, "_LOOK_S", 0.02)
    monkeypatch.setattr(janitor, "REFUSED_EVERY_S", 0.05)


@pytest.mark.fault("B3")
def test_a_new_database_removes_nothing_from_another_ones_store(
    store: Store, artifacts: Artifacts, tmp_path: Path, eager: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A janitor whose database knows none of the songs leaves all of them, however old, and reports it."""
    songs = strangers(artifacts, 30)
    for file in (tmp_path / "audio").rglob("*.mp3"):
        os.utime(file, (time.time() - 2 * DAY, time.time() - 2 * DAY))
    one = Janitor(store, artifacts, RetentionArgs())
    one.start()
    try:
        refusal = eventually(store.installation.refusal)
    finally:
        one.close()

    assert keys(artifacts) == songs
    assert "it holds 30 files without a job in this database, out of 30" in refusal
    assert refusal in caplog.text
    assert artifacts.mark() is None


@pytest.mark.fault("B3")
def test_a_mark_of_another_database_keeps_the_janitor_away(
    store: Store, artifacts: Artifacts, tmp_path: Path, eager: None
) -> None:
    """In a store marked by the first database, the second deletes nothing, not even files of its own jobs."""
    first = Store(f"sqlite:///{tmp_path / 'first.db'}")
    first.migrate()
    assert custody.claim(first, artifacts, 0.1, always) == ""
    song(store, artifacts)
    one = Janitor(store, artifacts, RetentionArgs(results_s=0, rows_s=0, orphans_s=0))
    one.start()
    try:
        refusal = eventually(store.installation.refusal)
    finally:
        one.close()

    assert "has the mark of another database" in refusal
    assert len(keys(artifacts)) == 1
    assert artifacts.mark() == first.installation.id()
    with pytest.raises(ConfigurationError, match="another database"):
        janitor.sweep_confirmed(store, artifacts, KEPT)
    first.close()


@pytest.mark.fault("B3")
@pytest.mark.parametrize(("known", "unknown", "adopted"), [(9, 1, True), (8, 2, False), (0, 1, False), (0, 0, True)])
def test_an_unmarked_store_is_adopted_on_proof_only(
    store: Store, artifacts: Artifacts, known: int, unknown: int, adopted: bool
) -> None:
    """An unmarked store of an earlier version is adopted if the database knows nine in ten of its files."""
    for _ in range(known):
        song(store, artifacts)
    strangers(artifacts, unknown)

    refusal = custody.claim(store, artifacts, 0.1, always)

    assert (refusal == "") is adopted
    assert artifacts.mark() == (store.installation.id() if adopted else None)


@pytest.mark.fault("B3")
def test_a_disk_that_is_not_mounted_costs_no_song_its_audio(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """An empty folder that should hold a dozen songs is not adopted, even with a new song in it, until an operator says so."""
    old = [song(store, artifacts) for _ in range(custody.FEW + 2)]
    (tmp_path / "audio").rename(tmp_path / "not mounted")
    elsewhere = Artifacts((tmp_path / "audio").as_uri())

    empty = custody.claim(store, elsewhere, 0.1, always)
    song(store, elsewhere)
    with_one = custody.claim(store, elsewhere, 0.1, always)
    unmarked = elsewhere.mark()
    shutil.rmtree(tmp_path / "audio")
    (tmp_path / "not mounted").rename(tmp_path / "audio")
    mounted = custody.claim(store, artifacts, 0.1, always)

    assert "of the 12 jobs with songs in this database, it holds the songs of only 0" in empty
    assert "of the 13 jobs with songs in this database, it holds the songs of only 1" in with_one
    assert unmarked is None
    assert mounted == ""
    assert artifacts.mark() == store.installation.id()
    assert all(job.audio_gone_at is None for job in store.jobs.get_many([job.id for job in old]).values())


@pytest.mark.fault("B3")
def test_an_unfinished_count_proves_nothing(store: Store, artifacts: Artifacts) -> None:
    """A janitor that is stopped while it counts marks no store."""
    song(store, artifacts)

    assert custody.claim(store, artifacts, 0.1, lambda: False)

    assert artifacts.mark() is None


@pytest.mark.fault("B3")
def test_more_orphans_than_the_share_stay_until_an_operator_says_so(
    store: Store,
    artifacts: Artifacts,
    store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Many unknown files stay in the database's own store until `sophia artifacts sweep --confirm` removes them."""
    custody.claim(store, artifacts, 0.1, always)
    ours = song(store, artifacts)
    strangers(artifacts, custody.FEW + 1)
    everything = keys(artifacts)
    audit(store, artifacts, KEPT, always)
    assert keys(artifacts) == everything
    assert "removed none of the 11 files" in store.installation.refusal()
    monkeypatch.setenv("SOPHIA_DATABASE_URL", store_url)
    monkeypatch.setenv("SOPHIA_ARTIFACTS_URL", (tmp_path / "audio").as_uri())
    monkeypatch.setenv("SOPHIA_RETENTION__ORPHANS_S", "0")
    monkeypatch.chdir(tmp_path)

    assert main(["artifacts", "sweep"]) == 0
    assert "Files that belong to no job: 11 of 12." in capsys.readouterr().out
    assert keys(artifacts) == everything

    assert main(["artifacts", "sweep", "--confirm"]) == 0
    assert keys(artifacts) == {f"{ours.id}/1/0.mp3"}
    assert store.installation.refusal() == ""


def test_few_orphans_go_by_themselves(store: Store, artifacts: Artifacts) -> None:
    """A few orphans, as a crash leaves them, are removed without an operator, even in a small store."""
    custody.claim(store, artifacts, 0.1, always)
    strangers(artifacts, custody.FEW)
    audit(store, artifacts, KEPT, always)
    assert keys(artifacts) == set()
    assert store.installation.refusal() == ""


def test_a_sweep_never_removes_more_than_it_may(store: Store, artifacts: Artifacts) -> None:
    """Files that become orphans between the count and the removal are left for the next count."""
    strangers(artifacts, 5)
    assert janitor.sweep_files(store, artifacts, -1, at_most=3) == 3
    assert len(keys(artifacts)) == 2


@pytest.mark.fault("B3")
def test_health_tells_of_a_refusal_until_the_store_is_adopted(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/v1/health` reports why nothing is deleted; after `sophia artifacts adopt` the janitor works again."""
    strangers(Artifacts((tmp_path / "audio").as_uri()), 3)
    with running(tmp_path, {"ace-step": simulated()}) as service:

        def notices() -> str:
            return "\n".join(service.client.get("/v1/health").json()["notices"])

        eventually(lambda: "audio store has no mark" in notices())
        monkeypatch.setenv("SOPHIA_DATA_DIR", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert main(["artifacts", "adopt"]) == 0
        eventually(lambda: "audio store" not in notices())
        assert service.artifacts.mark() == service.store.installation.id()


def test_a_mark_that_cannot_be_read_is_nobodys(tmp_path: Path, store: Store, artifacts: Artifacts) -> None:
    """A damaged mark does not prove ownership."""
    (tmp_path / "audio" / ".sophia-store.json").write_text("{")
    assert "another database" in custody.claim(store, artifacts, 0.1, always)

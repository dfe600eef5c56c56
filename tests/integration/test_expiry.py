"""What `expire` removes: audio after `results_s` and jobs after `rows_s`, a limited share at a time."""

from pathlib import Path

import pytest

from serve_app.artifacts import Artifacts
from serve_app.background import custody
from serve_app.background.custody import PAGE
from serve_app.background.janitor import expire
from serve_app.errors import GenerationError, NotFound
from serve_app.jobs import Status
from serve_app.ops.cli import main
from serve_app.store import Store
from tests.support.retention import DAY, KEPT, aged, always, claimed, key_of, keys, many, song


def test_audio_goes_when_its_time_is_over_and_the_job_stays(store: Store, artifacts: Artifacts) -> None:
    """Songs older than results_s lose their files and their jobs show it; younger songs keep them."""
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
    """Ended jobs older than rows_s are deleted with everything that belongs to them; unfinished jobs never are."""
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
    """A job that was retried after it had been found expired is kept."""
    job = claimed(store)
    store.claims.fail(job, GenerationError("no"))
    aged(store, job, 31 * DAY)
    [found] = store.retention.ended_long_ago(KEPT.rows_s, 10)
    store.jobs.retry(job.id, max_attempts=3)

    assert store.retention.forget([found.id], KEPT.rows_s) == 0

    assert store.jobs.get(job.id).status is Status.QUEUED


def test_more_than_a_page_is_worked_through(store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
    """Everything that is due is removed, over any number of pages."""
    many(store, artifacts, tmp_path, 2 * PAGE + 1, age_s=8 * DAY)
    expire(store, artifacts, KEPT, always)
    assert keys(artifacts) == set()
    assert store.retention.with_old_audio(0, 1) == []


@pytest.mark.fault("B3")
def test_a_wrong_clock_costs_a_share_and_not_everything(
    store: Store,
    artifacts: Artifacts,
    store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """If all songs expire at once, a round removes its share and reports the rest, which an operator can confirm."""
    many(store, artifacts, tmp_path, 5 * PAGE, age_s=8 * DAY)
    few = KEPT.model_copy(update={"expiry_share": 0.3})
    custody.claim(store, artifacts, 0.1, always)

    held_back = expire(store, artifacts, few, always)
    left = len(keys(artifacts))
    said = store.installation.held_back()
    expire(store, artifacts, few, always)
    after_two = len(keys(artifacts))
    monkeypatch.setenv("SOPHIA_DATABASE_URL", store_url)
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
    """The limit also holds for deleting jobs; a remainder that fits into the next round is not reported."""
    made = many(store, artifacts, tmp_path, 2 * PAGE + 1, age_s=31 * DAY)
    few = KEPT.model_copy(update={"expiry_share": 0.1})
    first = expire(store, artifacts, few, always)
    left = len(store.jobs.get_many([job.id for job in made]))
    second = expire(store, artifacts, few, always)
    rest = len(store.jobs.get_many([job.id for job in made]))

    assert "101 jobs" in first
    assert (left, rest) == (101, 1)
    assert second == ""

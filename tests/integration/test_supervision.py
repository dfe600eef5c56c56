"""Background tasks: they survive every error, and report while they fail."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from serve_app import supervision
from serve_app.api.watch import JobWatcher
from serve_app.store import Store
from serve_app.supervision import PeriodicThread, SupervisedTask, Supervisor
from tests.support.helpers import eventually
from tests.support.running import running, simulated


class Broken(Exception):
    """An error that no handler in Sophia expects."""


# --- Any task ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("B10")
def test_work_goes_on_after_an_error_that_nobody_foresaw(caplog: pytest.LogCaptureFixture) -> None:
    """A failing step is reported at once, retried with backoff and logged with one traceback until it succeeds."""
    supervisor = Supervisor()
    broken = threading.Event()
    broken.set()
    steps: list[float] = []

    def step() -> None:
        steps.append(time.monotonic())
        if broken.is_set():
            raise Broken("secret detail")
        time.sleep(0.01)

    thread = PeriodicThread(supervisor, "sweeper", step, retry_s=0.01)
    with caplog.at_level(logging.INFO, "ray.serve.sophia"):
        thread.start()
        eventually(lambda: len(steps) > 5)
        [problem] = supervisor.problems()
        broken.clear()
        eventually(lambda: not supervisor.problems())
    thread.close()

    assert "sweeper" in problem
    assert "Broken" in problem
    assert "secret" not in problem
    failures = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(failures) == 1
    assert failures[0].exc_info is not None
    assert steps[5] - steps[4] > steps[1] - steps[0]  # it backs off


@pytest.mark.fault("B10")
def test_work_that_fails_for_long_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lasting failure is logged at intervals, not on every retry."""
    monkeypatch.setattr(supervision, "LOG_EVERY_S", 0.3)
    task = SupervisedTask(Supervisor(), "sweeper")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "ray.serve.sophia"):
        while time.monotonic() < began + 1:
            task.record_failure(Broken())
            time.sleep(0.005)

    assert 2 <= len(caplog.records) <= 5
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.fault("B10")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_reported() -> None:
    """An error that ends the thread itself is reported as a problem."""
    supervisor = Supervisor()

    def step() -> None:
        raise SystemExit

    thread = PeriodicThread(supervisor, "sweeper", step)
    thread.start()
    eventually(lambda: not thread.alive)

    assert supervisor.problems() == ["sweeper: its thread has died; see the log of its process"]


def test_a_step_chooses_when_the_next_one_runs() -> None:
    """The thread waits for the number of seconds that a step returns, instead of its period."""
    steps: list[float] = []

    def step() -> float:
        steps.append(time.monotonic())
        return 0.0

    thread = PeriodicThread(Supervisor(), "sweeper", step, period_s=3600)
    thread.start()
    eventually(lambda: len(steps) > 2)
    thread.close()

    assert not thread.alive


# --- The API's and the worker's ---------------------------------------------------------------------------------------


@pytest.mark.fault("B10")
@pytest.mark.parametrize(
    ("part", "name", "task"),
    [
        ("time_limits", "enforce", "sweeper"),
        ("leases", "take", "janitor"),
        ("webhooks", "claim", "webhooks"),
        ("jobs", "get_many", "job watcher"),
    ],
)
def test_each_task_of_the_api_goes_on_and_is_in_health_while_it_fails(
    part: str, name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error ends no task: health names the failing one, and recovers once the error stops."""
    monkeypatch.setattr("serve_app.background.janitor._LOOK_S", 0.1)
    broken = threading.Event()
    broken.set()
    kind = type(getattr(Store(f"sqlite:///{tmp_path / 'other.db'}"), part))
    real = getattr(kind, name)

    def fails(*args: Any, **kwargs: Any) -> Any:
        if broken.is_set():
            raise Broken
        return real(*args, **kwargs)

    monkeypatch.setattr(kind, name, fails)
    with running(tmp_path, {"m": simulated(step_s=0.05)}, webhook_secret="whsec_" + "A" * 43 + "=") as service:
        job = service.submit(steps=200)
        follower = threading.Thread(target=service.client.get, args=(f"/v1/jobs/{job['id']}/events",))
        follower.start()

        def told(expected: bool) -> dict[str, Any] | None:
            health = dict(service.client.get("/v1/health").json())
            return health if any(task in notice for notice in health["notices"]) is expected else None

        failing = eventually(lambda: told(True))
        broken.clear()
        well = eventually(lambda: told(False))
        assert service.client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
        follower.join()

    assert (failing["status"], well["status"]) == ("degraded", "ok")


@pytest.mark.fault("B10")
def test_the_watch_of_revoked_keys_goes_on_and_is_in_health_while_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that ends streams of revoked keys survives an unexpected error, and health reports it."""
    monkeypatch.setattr("serve_app.api.key_cache.KEYS_FRESH_S", 0.1)
    real = JobWatcher.end_waits_except
    broken = threading.Event()
    broken.set()

    def fails(self: JobWatcher, owners: Any) -> None:
        if broken.is_set():
            raise Broken
        real(self, owners)

    monkeypatch.setattr(JobWatcher, "end_waits_except", fails)
    with running(tmp_path, workers=0) as service:

        def told() -> bool:
            return "watch of revoked keys" in str(service.client.get("/v1/health").json()["notices"])

        eventually(told)
        broken.clear()
        eventually(lambda: not told())


@pytest.mark.fault("B10")
def test_a_worker_goes_on_and_says_so_while_it_cannot_ask_for_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an unexpected error a worker keeps its model, reports the error in its row, and generates again."""
    broken = threading.Event()
    with running(tmp_path) as service:
        kind = type(service.store.claims)
        real = kind.take

        def fails(*args: Any, **kwargs: Any) -> Any:
            if broken.is_set():
                raise Broken
            return real(*args, **kwargs)

        monkeypatch.setattr(kind, "take", fails)
        broken.set()

        def error() -> Any:
            [row] = service.client.get("/v1/health").json()["workers"]
            return row["error"]

        told = eventually(lambda: error(), 60)
        broken.clear()
        ended = service.ended(service.submit()["id"])

    assert "Broken" in told["message"]
    assert ended["state"] == "succeeded"

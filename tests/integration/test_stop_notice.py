"""What callers who wait for a song are told before `make serve` stops."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serve_app.config.environment import LAUNCHER
from serve_app.ops.launch.stop_notice import StopNotice
from tests.support.failure_codes import provoked
from tests.support.helpers import eventually
from tests.support.running import SONG, Service, running


@pytest.fixture
def notice(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopNotice]:
    """The notice of a launcher that starts API processes in this environment."""
    notice = StopNotice()
    monkeypatch.setenv(LAUNCHER, notice.name)
    yield notice
    notice.close()


def jobs(service: Service) -> list[str]:
    return [job["id"] for job in service.client.get("/v1/jobs").json()["jobs"]]


def test_waiting_callers_are_answered_before_a_stop(notice: StopNotice, tmp_path: Path) -> None:
    """A call for a song gets 503 with its job, `Prefer: wait` the job as it is, and an event stream ends; the jobs stay queued."""
    with running(tmp_path, workers=0, api={"leave_grace_s": 0.1}) as service, ThreadPoolExecutor(3) as callers:
        song = callers.submit(httpx.post, f"{service.url}/v1/music", json=SONG, timeout=60)
        eventually(lambda: len(jobs(service)) == 1)
        waiting = callers.submit(
            httpx.post, f"{service.url}/v1/jobs", json=SONG, headers={"Prefer": "wait=60"}, timeout=60
        )
        eventually(lambda: len(jobs(service)) == 2)
        second, first = jobs(service)
        stream = callers.submit(httpx.get, f"{service.url}/v1/jobs/{first}/events", timeout=60)
        eventually(lambda: notice.is_connected)

        notice.announce()

        refused, accepted, followed = (caller.result(60) for caller in (song, waiting, stream))
        late = httpx.post(f"{service.url}/v1/music", json=SONG, timeout=60)
        states = {service.job(job)["state"] for job in jobs(service)}
    provoked(
        "stopping", "a caller waits for a song when the service stops", refused.json()["detail"].replace(first, "ID")
    )
    assert (refused.status_code, refused.headers["location"]) == (503, f"/v1/jobs/{first}")
    assert refused.headers["retry-after"]
    assert (accepted.status_code, accepted.json()["id"], accepted.json()["state"]) == (202, second, "queued")
    assert followed.text.startswith("event: state\n")
    assert (late.status_code, late.json()["code"]) == (503, "stopping")
    assert states == {"queued"}


def test_a_notice_without_api_processes_takes_no_time() -> None:
    """Nobody is waited for."""
    notice = StopNotice()
    notice.announce()

    notice.close()

    assert not notice.is_connected

"""The real `runpod` package against a running Sophia: only its base URL and key are set. `make clients` installs it."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
import soundfile

from serve_app.errors import BadAdapter
from serve_app.store.tables import jobs
from tests.support.client_process import ARE_HERE, ClientProcess, client_process
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.queue import claim
from tests.support.running import Service, running, simulated

SCRIPT = ROOT / "tests" / "support" / "runpod_client.py"
INPUT = {"caption": "warm piano", "audio_duration": 2, "audio_format": "flac"}

pytestmark = pytest.mark.skipif(not ARE_HERE, reason="the packages are not here: make clients")


class Package:
    """The package in its own process. `kind` is `sync` or `asyncio`."""

    def __init__(self, process: ClientProcess, service: Service, key: str) -> None:
        self.service = service
        self.kind = "sync"
        self.key = key
        self._process = process

    def tell(self, call: str, *arguments: Any, key: str | None = None) -> dict[str, Any]:
        """What the call returned or raised."""
        return self._process.tell(self.kind, key or self.key, call, *arguments)

    def call(self, call: str, *arguments: Any) -> Any:
        """What the call returned, with the model with a worker as the endpoint."""
        answer = self.tell(call, *arguments)
        assert "result" in answer, answer
        return answer["result"]


@pytest.fixture(scope="module")
def process_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """A service with one model that has a worker and one that has none, a key, and the package that calls it."""
    models = {"ace-step": simulated(step_s=0.1), "asleep": simulated(workers=0)}
    limits = {"max_owner_jobs": 40}
    with running(tmp_path_factory.mktemp("runpod"), models, queue=limits) as service:
        key = service.use_key()
        with client_process(SCRIPT, {"RUNPOD_ENDPOINT_BASE_URL": f"{service.url}/v2"}) as process:
            yield Package(process, service, key)


@pytest.fixture(params=["sync", "asyncio"])
def package(process_of: Package, request: pytest.FixtureRequest) -> Package:
    """The package with each kind of client, and an empty queue."""
    process_of.kind = request.param
    process_of.call("purge_queue", "asleep")
    return process_of


def test_a_song_is_made_waited_for_and_played(package: Package) -> None:
    """run and output return a song that decodes, has its length and is not silent."""
    job = package.call("run", "ace-step", INPUT)

    [song] = package.call("output", "ace-step", job, 60)["songs"]

    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(song["audio_base64"])))
    assert (rate, len(samples) / rate, bool(abs(samples).max() > 0.01)) == (48_000, 2.0, True)
    assert package.call("status", "ace-step", job) == "COMPLETED"


def test_run_sync_returns_the_song(process_of: Package) -> None:
    """run_sync, which only the blocking client has, returns the output."""
    process_of.kind = "sync"

    [song] = process_of.call("run_sync", "ace-step", INPUT, 60)["songs"]

    assert song["seconds"] == 2.0


def test_every_state_is_seen(package: Package) -> None:
    """IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, TIMED_OUT and CANCELLED; the test itself plays the worker of `asleep`."""
    store = package.service.store

    def new() -> str:
        return str(package.call("run", "asleep", INPUT))

    def state(job: str) -> Any:
        return package.call("status", "asleep", job)

    queued = new()
    seen = [state(queued)]
    claim(store, model="asleep", lease_s=600)
    seen.append(state(queued))
    finished = package.call("run", "ace-step", INPUT)
    eventually(lambda: package.call("status", "ace-step", finished) == "COMPLETED")
    failed = new()
    store.claims.fail(claim(store, model="asleep"), BadAdapter("it is broken"))
    seen.append(state(failed))
    late = new()
    claim(store, model="asleep", lease_s=600)
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == late).values(started_at=jobs.c.started_at - 601))
    eventually(lambda: state(late) == "TIMED_OUT")
    cancelled = new()
    package.call("cancel", "asleep", cancelled)
    seen.append(state(cancelled))

    assert seen == ["IN_QUEUE", "IN_PROGRESS", "FAILED", "CANCELLED"]


def test_a_stream_has_each_song_and_ends(package: Package) -> None:
    """stream yields the songs of a job and ends."""
    job = package.call("run", "ace-step", {**INPUT, "batch_size": 2})

    songs = package.call("stream", "ace-step", job)

    assert [song["format"] for song in songs] == ["flac", "flac"]


def test_the_stream_of_a_cancelled_job_ends(package: Package) -> None:
    """A running job is cancelled, and a stream of it ends without a song."""
    job = package.call("run", "ace-step", {**INPUT, "steps": 200, "seed": 3})
    eventually(lambda: package.call("status", "ace-step", job) == "IN_PROGRESS")

    answer = package.call("cancel", "ace-step", job)

    assert answer == {"id": job, "status": "CANCELLED"}
    assert package.call("stream", "ace-step", job) == []
    eventually(lambda: package.call("health", "ace-step")["workers"]["idle"] == 1)


def test_the_queue_is_counted_and_purged(package: Package) -> None:
    """health counts queued jobs, and purge_queue removes them."""
    for _ in range(3):
        package.call("run", "asleep", INPUT)

    counted = package.call("health", "asleep")["jobs"]["inQueue"]
    purged = package.call("purge_queue", "asleep")

    assert (counted, purged) == (3, {"removed": 3, "status": "completed"})


def test_errors_are_the_packages_own(process_of: Package) -> None:
    """A bad key, an unknown endpoint, bad input and a full queue raise what the blocking client raises for them."""
    process_of.kind = "sync"
    bad_key = process_of.tell("run", "ace-step", INPUT, key="wrong")
    unknown = process_of.tell("run", "dead", INPUT)
    bad_input = process_of.tell("run", "ace-step", {**INPUT, "audio_duration": 900})
    for _ in range(40):
        full = process_of.tell("run", "asleep", INPUT)
    full = process_of.tell("run", "asleep", INPUT)
    process_of.call("purge_queue", "asleep")

    assert (bad_key["error"], "401 Unauthorized" in bad_key["text"]) == ("RuntimeError", True)
    for answer, status in ((unknown, 404), (bad_input, 400), (full, 429)):
        assert (answer["error"], answer["text"][:3]) == ("HTTPError", str(status))


def test_the_old_ping_is_answered(package: Package) -> None:
    """The input `{"ping": true}` is answered without a worker."""
    job = package.call("run", "asleep", {"ping": True})

    assert package.call("output", "asleep", job, 10)["pong"] is True

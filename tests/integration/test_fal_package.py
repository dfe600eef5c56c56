"""The real packages of fal against a running Sophia: only their hosts and key are set. `make clients` installs them."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.certificates import self_signed
from tests.support.client_process import ARE_HERE, JAVASCRIPT, ClientProcess, client_process, run_example
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.running import Service, running_with_https, simulated
from tests.support.songs import heard

pytestmark = pytest.mark.skipif(not ARE_HERE, reason="the packages are not here: make clients")

APP = "fal-ai/ace-step"
INPUT = {"tags": "lofi, piano", "duration": 2, "number_of_steps": 4, "format": "flac"}
OWN_ERRORS = {"sync": "FalClientHTTPError", "asyncio": "FalClientHTTPError", "javascript": "ApiError"}


class Package:
    """One of the packages' clients. `kind` is `sync`, `asyncio` or `javascript`."""

    def __init__(self, kind: str, process: ClientProcess, service: Service, key: str) -> None:
        self.kind = kind
        self.service = service
        self._process = process
        self._key = key

    def tell(self, call: str, app: str, given: Any, *, key: str = "", seconds: float | None = None) -> dict[str, Any]:
        """What the call returned or raised."""
        return self._process.tell(self.kind, key or self._key, call, app, given, seconds)

    def call(self, call: str, app: str, given: Any) -> Any:
        answer = self.tell(call, app, given)
        assert "result" in answer, answer
        return answer["result"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of the service: the Python package speaks https only."""
    return self_signed(tmp_path_factory.mktemp("certificate"), "localhost")[0]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Service]:
    """A service with one model that has a worker and one that has none. Its `url` is that of an API process with https."""
    models = {"ace-step": simulated(step_s=0.1), "asleep": simulated(workers=0)}
    settings: dict[str, Any] = {"queue": {"max_owner_jobs": 3}, "api": {"leave_grace_s": 1}}
    folder = tmp_path_factory.mktemp("fal")
    with running_with_https(folder, models, certificate, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.use_key()


@pytest.fixture(scope="module")
def environment(service: Service, certificate: Path) -> dict[str, str]:
    host = service.url.removeprefix("https://")
    return {
        "FAL_RUN_HOST": f"{host}/fal/run",
        "FAL_QUEUE_RUN_HOST": f"{host}/fal/queue",
        "SOPHIA_URL": service.url,
        "SSL_CERT_FILE": str(certificate),
        "NODE_EXTRA_CA_CERTS": str(certificate),
    }


@pytest.fixture(scope="module", params=["sync", "asyncio", "javascript"])
def package(
    service: Service, key: str, environment: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[Package]:
    """Each kind of client."""
    python = ROOT / "tests" / "support" / "fal_calls.py"
    script = JAVASCRIPT / "fal.mjs" if request.param == "javascript" else python
    with client_process(script, environment) as process:
        yield Package(request.param, process, service, key)


def is_heard(result: dict[str, Any], certificate: Path) -> bool:
    """Whether the song of a result can be fetched without a key, decodes, has its length and is not silent."""
    trusted = ssl.create_default_context(cafile=certificate)
    return heard(httpx.get(result["audio"]["url"], verify=trusted).content) == (2.0, False)


def test_a_song_is_made_by_a_synchronous_call(package: Package, certificate: Path) -> None:
    """run returns the address of a song."""
    assert is_heard(package.call("run", APP, INPUT), certificate)


def test_a_song_is_queued_and_waited_for(package: Package, certificate: Path) -> None:
    """subscribe sees the job's states and returns the song."""
    found = package.call("subscribe", f"{APP}/prompt-to-audio", {**INPUT, "seed": 1})

    assert set(found["seen"]) <= {"Queued", "InProgress", "Completed"}
    assert found["seen"][-1] == "Completed"
    assert is_heard(found["result"], certificate)


def test_the_steps_of_the_queue_are_called_one_by_one(package: Package, certificate: Path) -> None:
    """submit, status and result lead to the song."""
    job = package.call("submit", APP, {**INPUT, "seed": 2})

    eventually(lambda: package.call("status", APP, job)["kind"] == "Completed")

    assert is_heard(package.call("result", APP, job), certificate)


def test_a_running_job_is_cancelled(package: Package) -> None:
    """status shows a place in the queue and InProgress; cancel ends the job, and its result is the package's error."""
    job = package.call("submit", APP, {**INPUT, "steps": 200, "number_of_steps": None, "seed": 3})
    waiting = package.call("submit", "fal-ai/asleep", {**INPUT, "seed": 4})
    assert package.call("status", "fal-ai/asleep", waiting)["kind"] == "Queued"
    eventually(lambda: package.call("status", APP, job)["kind"] == "InProgress")

    for app, each in ((APP, job), ("fal-ai/asleep", waiting)):
        package.call("cancel", app, each)

    eventually(lambda: package.service.job(job)["state"] == "cancelled")
    refused = package.tell("result", APP, job)
    assert (refused["error"], refused["status"]) == (OWN_ERRORS[package.kind], 400)


def test_errors_are_the_packages_own(package: Package) -> None:
    """A bad key, an unknown app and bad input raise what the package raises for them."""
    bad_key = package.tell("submit", APP, INPUT, key="wrong")
    unknown = package.tell("submit", "fal-ai/flux", INPUT)
    bad_input = package.tell("run", APP, {**INPUT, "duration": 900})

    own = OWN_ERRORS[package.kind]
    assert (bad_key["error"], bad_key["status"]) == (own, 401)
    assert (unknown["error"], unknown["status"]) == (own, 404)
    assert (bad_input["error"], bad_input["status"]) == ("ValidationError" if own == "ApiError" else own, 422)
    assert "must be less than or equal to 600" in bad_input["text"]


def test_over_a_limit_is_an_error(package: Package) -> None:
    """With a full queue the package repeats the request for a while, and then raises its exception for 429."""
    if package.kind == "asyncio":
        pytest.skip("the blocking client repeats for a minute in the same way")
    waiting = [package.service.submit(model="asleep", seed=seed)["id"] for seed in (1, 2, 3)]

    full = package.tell("submit", APP, INPUT)

    assert (full["error"], full["status"]) == (OWN_ERRORS[package.kind], 429)
    for job in waiting:
        package.service.client.post(f"/v1/jobs/{job}/cancel")


def test_a_song_is_cancelled_by_leaving(package: Package) -> None:
    """Who leaves a synchronous call cancels its song. The blocking client repeats the call instead, and makes one song only."""
    title = f"left by {package.kind}"
    given = {**INPUT, "title": title, "number_of_steps": 25 if package.kind == "sync" else 200}

    answer = package.tell("run", APP, given, seconds=0.8)

    found = [
        job for job in package.service.client.get("/v1/jobs").json()["jobs"] if job["request"].get("title") == title
    ]
    assert len(found) == 1
    if package.kind == "sync":
        assert "result" in answer, answer
    else:
        assert "error" in answer
        eventually(lambda: package.service.job(found[0]["id"])["state"] == "cancelled")


def test_a_stream_of_states_ends(package: Package, certificate: Path) -> None:
    """The JavaScript package follows a job by its stream of states, too."""
    if package.kind != "javascript":
        pytest.skip("only the JavaScript package has it")

    found = package.call("stream", APP, {**INPUT, "seed": 5})

    assert found["seen"][-1] == "Completed"
    assert is_heard(found["result"], certificate)


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_the_example_of_the_guide_runs(
    service: Service, key: str, environment: dict[str, str], tmp_path: Path, language: str
) -> None:
    """It prints the address of a song."""
    printed = run_example("fal", language, tmp_path, service.url, key, environment)

    assert f"{service.url}/v1/jobs/" in printed

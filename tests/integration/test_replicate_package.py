"""The real packages of Replicate against a running Sophia: only their base URL and key are set. `make clients` installs them."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import BadAdapter
from tests.support.certificates import self_signed
from tests.support.client_process import ARE_HERE, JAVASCRIPT, ClientProcess, client_process, run_example
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.queue import claim
from tests.support.running import Service, running_with_https, simulated
from tests.support.songs import heard

pytestmark = pytest.mark.skipif(not ARE_HERE, reason="the packages are not here: make clients")

MODEL = "visoar/ace-step-1.5"
INPUT = {"caption": "lofi, piano", "duration": 2, "format": "flac"}
OWN_ERRORS = {"sync": "ReplicateError", "asyncio": "ReplicateError", "javascript": "ApiError"}


class Package:
    """One of the packages' clients. `kind` is `sync`, `asyncio` or `javascript`."""

    def __init__(self, kind: str, process: ClientProcess, service: Service, key: str) -> None:
        self.kind = kind
        self.service = service
        self._process = process
        self._key = key

    def tell(self, call: str, name: str, given: Any = None, *, key: str = "") -> dict[str, Any]:
        """What the call returned or raised."""
        return self._process.tell(self.kind, key or self._key, call, name, given)

    def call(self, call: str, name: str, given: Any = None) -> Any:
        answer = self.tell(call, name, given)
        assert "result" in answer, answer
        return answer["result"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of the service: the packages make files of https addresses only."""
    return self_signed(tmp_path_factory.mktemp("certificate"), "localhost")[0]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Service]:
    """A service with one model that has a worker and one that has none. Its `url` is that of an API process with https."""
    models = {"ace-step": simulated(step_s=0.05), "asleep": simulated(workers=0)}
    folder = tmp_path_factory.mktemp("replicate")
    with running_with_https(folder, models, certificate, queue={"max_owner_jobs": 3}) as service:
        yield service


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.use_key()


@pytest.fixture(scope="module")
def environment(service: Service, certificate: Path) -> dict[str, str]:
    return {
        "SOPHIA_URL": service.url,
        "SSL_CERT_FILE": str(certificate),
        "NODE_EXTRA_CA_CERTS": str(certificate),
        "REPLICATE_API_TOKEN": "",
    }


@pytest.fixture(scope="module", params=["sync", "asyncio", "javascript"])
def package(
    service: Service, key: str, environment: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[Package]:
    """Each kind of client."""
    python = ROOT / "tests" / "support" / "replicate_calls.py"
    script = JAVASCRIPT / "replicate.mjs" if request.param == "javascript" else python
    with client_process(script, environment) as process:
        yield Package(request.param, process, service, key)


@pytest.mark.parametrize("name", [MODEL, f"{MODEL}:ace-step"])
def test_songs_are_made_and_played(package: Package, name: str) -> None:
    """run returns files that decode, have their length and are not silent, of a model and of its version."""
    songs = package.call("run", name, {**INPUT, "batch_size": 2})

    assert [heard(base64.b64decode(song)) for song in songs] == [(2.0, False)] * 2


def test_a_running_prediction_is_cancelled(package: Package) -> None:
    """create, get and cancel show a prediction's states."""
    made = package.call("create", MODEL, {**INPUT, "steps": 200})
    eventually(lambda: package.call("get", made) == "processing")

    assert package.call("cancel", made) == "canceled"
    assert package.service.job(made)["state"] == "cancelled"


def test_a_failed_prediction_is_seen(package: Package) -> None:
    """get shows a prediction that has failed; the test itself plays the worker of `asleep`."""
    made = package.call("create", "visoar/asleep", INPUT)
    assert package.call("get", made) == "starting"
    package.service.store.claims.fail(claim(package.service.store, model="asleep"), BadAdapter("it is broken"))

    assert package.call("get", made) == "failed"


def test_errors_are_the_packages_own(package: Package) -> None:
    """A bad key, an unknown model, bad input and a full queue raise what the package raises for them."""
    answers = [
        package.tell("create", MODEL, INPUT, key="wrong"),
        package.tell("create", "black-forest/flux", INPUT),
        package.tell("create", MODEL, {**INPUT, "duration": 900}),
    ]
    waiting = [package.service.submit(model="asleep", seed=seed)["id"] for seed in (1, 2, 3)]
    if package.kind != "javascript":  # it repeats the request for minutes, as often as Retry-After allows
        answers.append(package.tell("create", MODEL, INPUT))
    for job in waiting:
        package.service.client.post(f"/v1/jobs/{job}/cancel")

    assert {answer["error"] for answer in answers} == {OWN_ERRORS[package.kind]}
    assert [answer["status"] for answer in answers] == [401, 404, 422, 429][: len(answers)]
    assert "input.duration: must be less than or equal to 600" in answers[2]["text"]


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_the_example_of_the_guide_runs(
    service: Service, key: str, environment: dict[str, str], tmp_path: Path, language: str
) -> None:
    """It leaves a song of ten seconds."""
    run_example("Replicate", language, tmp_path, service.url, key, environment)

    assert (tmp_path / "song.mp3").stat().st_size > 10_000

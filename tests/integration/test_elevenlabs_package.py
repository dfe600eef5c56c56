"""The real `elevenlabs` packages against a running Sophia: only their base URL and key are set. `make clients` installs them."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.support.client_process import ARE_HERE, JAVASCRIPT, ClientProcess, client_process, run_example
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.running import Service, running, simulated

pytestmark = pytest.mark.skipif(not ARE_HERE, reason="the packages are not here: make clients")

KINDS = ["sync", "asyncio", "javascript"]
PROMPT = {"prompt": "warm piano", "music_length_ms": 3000}
PLAN = {
    "positive_global_styles": ["folk"],
    "negative_global_styles": [],
    "sections": [
        {
            "section_name": name,
            "positive_local_styles": [],
            "negative_local_styles": [],
            "duration_ms": 3000,
            "lines": ["Rain"],
        }
        for name in ("Verse", "Chorus")
    ],
}


class Package:
    """One of the packages' clients. `kind` is `sync`, `asyncio` or `javascript`."""

    def __init__(self, kind: str, process: ClientProcess, service: Service, key: str) -> None:
        self.kind = kind
        self.service = service
        self._process = process
        self._key = key

    def tell(self, call: str, fields: dict[str, Any], *, key: str = "", seconds: float = 60) -> dict[str, Any]:
        """What the call returned or raised. Names of fields are in snake case."""
        given = camel(fields) if self.kind == "javascript" else fields
        return self._process.tell(self.kind, key or self._key, call, given, seconds)

    def call(self, call: str, fields: dict[str, Any]) -> Any:
        """What the call returned, with names in snake case."""
        answer = self.tell(call, fields)
        assert "result" in answer, answer
        return snake(answer["result"])


def renamed(value: Any, name_of: Any) -> Any:
    if isinstance(value, dict):
        return {name_of(name): renamed(inner, name_of) for name, inner in value.items()}
    return [renamed(inner, name_of) for inner in value] if isinstance(value, list) else value


def camel(value: Any) -> Any:
    return renamed(value, lambda name: re.sub("_([a-z])", lambda found: str(found[1]).upper(), name))


def snake(value: Any) -> Any:
    return renamed(value, lambda name: re.sub("([A-Z])", lambda found: f"_{found[1].lower()}", name))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one model that has a worker and one that has none, which has a name that the JavaScript package knows."""
    planned = simulated(planner={"source": "simulated"}, simulated={"step_s": 0.01, "plan_s": 0.01})
    models = {"ace-step": planned, "music_v2": simulated(workers=0)}
    settings: dict[str, Any] = {"queue": {"max_owner_jobs": 2}, "api": {"leave_grace_s": 0.2}}
    with running(tmp_path_factory.mktemp("elevenlabs"), models, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose songs take 16 s."""
    with running(
        tmp_path_factory.mktemp("slow"), {"ace-step": simulated(step_s=2)}, api={"leave_grace_s": 0.2}
    ) as service:
        yield service


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.use_key()


@pytest.fixture(scope="module", params=KINDS)
def package(service: Service, key: str, request: pytest.FixtureRequest) -> Iterator[Package]:
    """Each kind of client."""
    with package_of(request.param, service, key) as package:
        yield package


@contextmanager
def package_of(kind: str, service: Service, key: str) -> Iterator[Package]:
    python = ROOT / "tests" / "support" / "elevenlabs_client.py"
    script = JAVASCRIPT / "elevenlabs.mjs" if kind == "javascript" else python
    with client_process(script, {"SOPHIA_URL": service.url}) as process:
        yield Package(kind, process, service, key)


def only_job(service: Service, prompt: str) -> dict[str, Any]:
    """The job with this prompt, which nothing else has."""
    jobs: list[dict[str, Any]] = service.client.get("/v1/jobs").json()["jobs"]
    [job] = [job for job in jobs if job["request"]["prompt"] == prompt]
    return job


def is_heard(audio: str, seconds: float) -> bool:
    """Whether a file decodes, has this length and is not silent."""
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio)))
    return bool(round(len(samples) / rate, 1) == seconds and abs(samples).max() > 0.01)


@pytest.mark.parametrize("call", ["compose", "stream"])
def test_a_song_is_made_and_played(package: Package, call: str) -> None:
    """The song of a prompt decodes, has its length and is not silent."""
    audio = package.call(call, {**PROMPT, "output_format": "mp3_44100_128", "model_id": "music_v1"})

    assert is_heard(audio, 3)


def test_a_plan_is_made_and_composed(package: Package) -> None:
    """The plan that the planner writes has sections that are as long as asked for together, and becomes a song."""
    plan = package.call("plan", PROMPT)
    audio = package.call("compose", {"composition_plan": plan})

    assert plan["positive_global_styles"]
    assert sum(section["duration_ms"] for section in plan["sections"]) == 3000
    assert is_heard(audio, 3)


def test_details_are_read(package: Package) -> None:
    """The package finds the plan, the metadata, the file's name and the audio in the answer, and the song's id."""
    found = package.call("detailed", {"composition_plan": PLAN, "with_timestamps": False})

    assert found["json"]["composition_plan"] == PLAN
    assert found["json"]["song_metadata"]["description"] == "folk"
    assert found["filename"].startswith("folk-")
    assert package.service.job(found["song"])["state"] == "succeeded"
    assert is_heard(found["audio"], 6)


def test_errors_are_the_packages_own(package: Package) -> None:
    """A bad key, an unknown model and bad input raise what the package raises; in JavaScript it sends no unknown model."""
    bad_key = package.tell("compose", PROMPT, key="wrong")
    unknown = package.tell("compose", {**PROMPT, "model_id": "music_v9"})
    bad_input = package.tell("compose", {**PROMPT, "music_length_ms": 900_000})

    own = "ElevenLabsError" if package.kind == "javascript" else "ApiError"
    assert (bad_key["error"], bad_key["status"]) == (own, 401)
    assert (bad_input["error"], bad_input["status"]) == ("UnprocessableEntityError", 422)
    assert "music_length_ms: must be less than or equal to 600000" in bad_input["text"]
    if package.kind == "javascript":
        assert unknown["error"] == "JsonError"
    else:
        assert (unknown["error"], unknown["status"]) == ("UnprocessableEntityError", 422)


def test_over_a_limit_is_an_error(package: Package) -> None:
    """With a full queue the package raises its exception for 429."""
    waiting = [package.service.submit(model="music_v2", seed=seed)["id"] for seed in (1, 2)]

    full = package.tell("compose", PROMPT)

    own = "ElevenLabsError" if package.kind == "javascript" else "ApiError"
    assert (full["error"], full["status"]) == (own, 429)
    for job in waiting:
        package.service.client.post(f"/v1/jobs/{job}/cancel")


def test_a_song_is_cancelled_by_leaving(package: Package) -> None:
    """A client whose time-out is over leaves, and its job is cancelled."""
    prompt = f"left by {package.kind}"

    gone = package.tell("compose", {"prompt": prompt, "model_id": "music_v2"}, seconds=1)

    assert "error" in gone
    eventually(lambda: only_job(package.service, prompt)["state"] == "cancelled")


@pytest.mark.parametrize("kind", KINDS)
def test_a_running_song_is_cancelled_by_leaving(slow: Service, kind: str) -> None:
    """The same for a song that a worker had begun."""
    prompt = f"left by {kind}"
    with package_of(kind, slow, slow.use_key(f"studio-{kind}")) as package:
        gone = package.tell("compose", {"prompt": prompt}, seconds=3)

    assert "error" in gone
    eventually(lambda: only_job(slow, prompt)["state"] == "cancelled")
    assert only_job(slow, prompt)["started_at"] is not None


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_the_example_of_the_guide_runs(service: Service, key: str, tmp_path: Path, language: str) -> None:
    """It leaves a song of ten seconds."""
    run_example("ElevenLabs", language, tmp_path, service.url, key)

    assert is_heard(base64.b64encode((tmp_path / "song.mp3").read_bytes()).decode(), 10)

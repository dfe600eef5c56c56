"""The real `mcp` package against two API processes that take turns: only address and key are set. `make clients` installs it."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import soundfile

from tests.support.client_process import ARE_HERE, ClientProcess, client_process
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.running import Service, running, simulated
from tests.support.wires import http_wire

SCRIPT = ROOT / "tests" / "support" / "mcp_client.py"
SONG = {"prompt": "warm piano", "duration": 2, "format": "flac"}
LONG = {**SONG, "steps": 200}
"""A song that takes 20 s."""

pytestmark = pytest.mark.skipif(not ARE_HERE, reason="the packages are not here: make clients")


class Package:
    """The package in its own process, with the newest protocol (`auto`) or one with sessions (`legacy`)."""

    def __init__(self, process: ClientProcess, service: Service, key: str) -> None:
        self.service = service
        self.key = key
        self.mode = "auto"
        self._process = process

    def tell(self, call: str, *arguments: Any, key: str | None = None) -> dict[str, Any]:
        """What the call returned or raised."""
        return self._process.tell(self.mode, key or self.key, call, *arguments)

    def call(self, call: str, *arguments: Any) -> Any:
        """What the call returned."""
        answer = self.tell(call, *arguments)
        assert "result" in answer, answer
        return answer["result"]


@pytest.fixture(scope="module")
def process_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """Two API processes on one database, a relay that gives each connection to the next of them, and the package."""
    models = {"ace-step": simulated(step_s=0.1), "asleep": simulated(workers=0)}
    folder = tmp_path_factory.mktemp("mcp")
    settings: dict[str, Any] = {"api": {"leave_grace_s": 0.5}, "queue": {"max_owner_jobs": 10}}
    with (
        running(folder, models, **settings) as service,
        running(folder, models, workers=0, **settings) as other,
        http_wire(service.url, other.url) as (_, url),
    ):
        key = service.use_key()
        other.client.headers["Authorization"] = f"Bearer {key}"
        eventually(lambda: other.client.get("/v1/jobs").status_code == 200)
        with client_process(SCRIPT, {"SOPHIA_URL": url}) as process:
            yield Package(process, service, key)


@pytest.fixture(params=["auto", "legacy"])
def package(process_of: Package, request: pytest.FixtureRequest) -> Package:
    """The package with each kind of protocol."""
    process_of.mode = request.param
    return process_of


def newest(package: Package) -> dict[str, Any]:
    return dict(package.service.client.get("/v1/jobs").json()["jobs"][0])


def test_both_kinds_of_protocol_are_spoken(process_of: Package) -> None:
    """The two modes of the tests are protocols without and with sessions."""
    spoken = []
    for process_of.mode in ("auto", "legacy"):
        spoken.append(process_of.call("protocol"))

    assert spoken == ["2026-07-28", "2025-11-25"]


def test_tools_are_listed(package: Package) -> None:
    """list_tools names the tools."""
    assert package.call("tools") == [
        "generate_music",
        "extend_song",
        "get_song",
        "list_songs",
        "cancel_song",
        "list_models",
    ]


def test_a_song_is_made_with_progress_and_played(package: Package) -> None:
    """call_tool reports progress and answers with a song that decodes, has its length and is not silent, by link and resource."""
    answer = package.call("tool", "generate_music", SONG)

    percents = [percent for percent, _ in answer["progress"]]
    assert percents == sorted(set(percents))
    assert len(percents) > 3
    assert any("denoising" in message for _, message in answer["progress"])
    [song] = answer["structuredContent"]["songs"]
    file = httpx.get(song["url"]).content
    samples, rate = soundfile.read(io.BytesIO(file))
    assert (rate, len(samples) / rate, bool(abs(samples).max() > 0.01)) == (48_000, 2.0, True)
    assert song["resource"] in [resource["uri"] for resource in package.call("resources")]
    assert base64.b64decode(package.call("read", song["resource"])["blob"]) == file


def test_a_song_is_submitted_found_and_extended(package: Package) -> None:
    """A song that is not waited for is in list_songs, get_song waits for it, and extend_song goes on with it."""
    job = package.call("tool", "generate_music", {**SONG, "wait_s": 0})["structuredContent"]["id"]
    listed = package.call("tool", "list_songs", {})["structuredContent"]["jobs"]
    found = package.call("tool", "get_song", {"id": job, "wait_s": 60})
    longer = package.call("tool", "extend_song", {"song": job, "after_s": 2})["structuredContent"]

    assert job in [entry["id"] for entry in listed]
    assert found["structuredContent"]["state"] == "succeeded"
    assert longer["songs"][0]["seconds"] == 4


def test_a_running_call_is_cancelled(package: Package) -> None:
    """Cancelling call_tool cancels the running job; with sessions, its notification reaches the other API process."""
    assert package.call("cancelled", "generate_music", LONG, 2)

    job = eventually(lambda: found if (found := newest(package))["state"] != "running" else None)
    assert (job["state"], job["request"]["steps"]) == ("cancelled", 200)


def test_refusals_are_the_packages_own(package: Package) -> None:
    """A bad key and an unknown tool raise MCPError; a bad field, an unknown model and a full queue are errors of the tool."""
    errors = [package.tell("tools", key="wrong"), package.tell("tool", "sing", {})]
    refused = [
        package.call("tool", "generate_music", {**SONG, "duration": 900}),
        package.call("tool", "generate_music", {**SONG, "model": "none"}),
    ]
    for _ in range(11):
        full = package.call("tool", "generate_music", {**SONG, "model": "asleep", "wait_s": 0})
    package.service.client.post("/v2/asleep/purge-queue")

    assert [error["error"] for error in errors] == ["MCPError", "MCPError"]
    assert "API key" in errors[0]["text"]
    assert all(answer["isError"] for answer in (*refused, full))
    codes = [answer["structuredContent"]["code"] for answer in (*refused, full)]
    assert codes == ["invalid_request", "invalid_request", "quota_exceeded"]


def test_models_are_listed(package: Package) -> None:
    """list_models tells what each model can do."""
    models = package.call("tool", "list_models", {})["structuredContent"]["models"]

    assert [model["name"] for model in models] == ["ace-step", "asleep"]

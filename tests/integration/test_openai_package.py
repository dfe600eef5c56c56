"""The real `openai` packages for Python and JavaScript, and `litellm`, against a running Sophia: only base URL and key are set.

`make clients` installs them.
"""

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_process import ARE_HERE, JAVASCRIPT, ClientProcess, client_process, run_example
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.running import Service, running, simulated
from tests.support.songs import heard

pytestmark = pytest.mark.skipif(not ARE_HERE, reason="the packages are not here: make clients")

SONG: dict[str, Any] = {
    "model": "ace-step",
    "input": "warm piano",
    "voice": "alloy",
    "response_format": "flac",
    "extra_body": {"duration": 2},
}
CHAT: dict[str, Any] = {"model": "ace-step", "messages": [{"role": "user", "content": "warm piano"}]}
OPENAI_AUDIO: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "flac"}}


class Package:
    """A package's client. `kind` is `sync`, `asyncio`, `litellm` or `javascript`."""

    def __init__(self, kind: str, process: ClientProcess, service: Service, key: str) -> None:
        self.kind = kind
        self.service = service
        self._process = process
        self._key = key

    def tell(self, call: str, fields: dict[str, Any], *, key: str = "", **options: Any) -> dict[str, Any]:
        """What the call returned or raised."""
        return self._process.tell(self.kind, key or self._key, call, fields, options)

    def call(self, call: str, **fields: Any) -> Any:
        """What the call returned."""
        answer = self.tell(call, fields)
        assert "result" in answer, answer
        return answer["result"]

    def jobs(self, prompt: str) -> list[dict[str, Any]]:
        """The jobs with a prompt."""
        found = self.service.client.get("/v1/jobs", params={"limit": 100}).json()["jobs"]
        return [job for job in found if job["request"]["prompt"] == prompt]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one model that has a worker and one that has none."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    settings: dict[str, Any] = {"queue": {"max_owner_jobs": 5}, "api": {"leave_grace_s": 0.2}}
    with running(tmp_path_factory.mktemp("openai"), models, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.use_key()


@pytest.fixture(scope="module")
def processes(service: Service) -> Iterator[dict[str, ClientProcess]]:
    """A process with the packages for each language."""
    environment = {"OPENAI_BASE_URL": f"{service.url}/v1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    python = ROOT / "tests" / "support" / "openai_client.py"
    with ExitStack() as stack:
        yield {
            "python": stack.enter_context(client_process(python, environment)),
            "javascript": stack.enter_context(client_process(JAVASCRIPT / "openai.mjs", environment)),
        }


@pytest.fixture(params=["sync", "asyncio", "litellm", "javascript"])
def any_package(
    service: Service, key: str, processes: dict[str, ClientProcess], request: pytest.FixtureRequest
) -> Package:
    """Each package with each kind of client."""
    process = processes["javascript" if request.param == "javascript" else "python"]
    return Package(request.param, process, service, key)


@pytest.fixture(params=["sync", "asyncio", "javascript"])
def package(service: Service, key: str, processes: dict[str, ClientProcess], request: pytest.FixtureRequest) -> Package:
    """OpenAI's packages with each kind of client."""
    process = processes["javascript" if request.param == "javascript" else "python"]
    return Package(request.param, process, service, key)


def test_a_song_is_made_waited_for_and_played(any_package: Package) -> None:
    """The speech call returns a file that decodes, has its length and is not silent. LiteLLM sends no length on."""
    song = base64.b64decode(any_package.call("speech", **SONG))

    assert heard(song) == (60.0 if any_package.kind == "litellm" else 2.0, False)


def test_a_song_is_streamed_to_a_file(package: Package) -> None:
    """The call whose answer is read in pieces gives the same."""
    assert heard(base64.b64decode(package.call("speech_to_file", **SONG))) == (2.0, False)


def test_models_are_listed_and_found(package: Package) -> None:
    """The packages list the models and find one by its name; an unknown one is their NotFoundError."""
    assert package.call("models") == ["ace-step", "asleep"]
    assert package.call("model", name="ace-step") == "ace-step"
    assert package.tell("model", {"name": "dead"})["error"] == "NotFoundError"


@pytest.mark.parametrize(
    ("call", "fields", "wrong", "says"),
    [
        ("speech", SONG, {"speed": 2}, "speed: must be 1"),
        ("chat", CHAT, {"extra_body": {"duration": 900}}, "duration: must be less than or equal to 600"),
        ("chat_stream", CHAT, {"extra_body": {"duration": 900}}, "duration: must be less than or equal to 600"),
    ],
)
def test_errors_are_the_packages_own(
    any_package: Package, call: str, fields: dict[str, Any], wrong: dict[str, Any], says: str
) -> None:
    """A bad key, an unknown model, bad input and a full queue raise the exception classes that the packages have for them."""
    service = any_package.service
    bad_key = any_package.tell(call, fields, key="wrong")
    unknown = any_package.tell(call, {**fields, "model": "dead"})
    bad_input = any_package.tell(call, {**fields, **wrong})
    queued = [service.submit(model="asleep")["id"] for _ in range(5)]
    full = any_package.tell(call, fields, max_retries=0)
    for job in queued:
        service.client.post(f"/v1/jobs/{job}/cancel")

    answers = (bad_key, unknown, bad_input, full)
    assert [answer["status"] for answer in answers] == [401, 404, 400, 429]
    assert [answer["error"] for answer in answers] == [
        "AuthenticationError",
        "NotFoundError",
        "BadRequestError",
        "RateLimitError",
    ]
    assert "'ace-step' or 'asleep'" in unknown["text"]
    assert says in bad_input["text"]


@pytest.mark.parametrize("call", ["speech", "chat"])
def test_who_gives_up_cancels_the_song(any_package: Package, call: str) -> None:
    """A call that its package gives up after its time-out leaves one job, although the package repeats it, and it is cancelled."""
    prompt = f"given up by {any_package.kind}'s {call}"
    fields = (
        SONG | {"input": prompt} if call == "speech" else CHAT | {"messages": [{"role": "user", "content": prompt}]}
    )

    answer = any_package.tell(call, {**fields, "model": "asleep"}, timeout=1)

    assert answer["error"] in ("APITimeoutError", "APIConnectionTimeoutError", "Timeout")
    eventually(lambda: {job["state"] for job in any_package.jobs(prompt)} == {"cancelled"})


def test_songs_in_a_chat(any_package: Package) -> None:
    """A chat in OpenAI's shape has the song as base64, with an id and a transcript."""
    answer = any_package.call("chat", **CHAT, **OPENAI_AUDIO, extra_body={"duration": 2})

    [choice] = answer["choices"]
    assert heard(base64.b64decode(choice["message"]["audio"]["data"])) == (2.0, False)
    assert choice["message"]["audio"]["id"].startswith("audio-")
    assert choice["finish_reason"] == "stop"


def test_songs_in_ace_steps_shape(package: Package) -> None:
    """Without the field `audio`, the packages pass ACE-Step's list of data URLs on."""
    answer = package.call("chat", **CHAT, extra_body={"audio_config": {"duration": 2, "format": "wav"}})

    [song] = answer["choices"][0]["message"]["audio"]
    assert heard(base64.b64decode(song["audio_url"]["url"].partition(",")[2])) == (2.0, False)


def test_songs_in_a_stream(any_package: Package) -> None:
    """The pieces of a streamed chat are the song, and the stream ends with the reason stop."""
    chunks = any_package.call("chat_stream", **CHAT, **OPENAI_AUDIO, extra_body={"duration": 2})

    deltas = [chunk["choices"][0]["delta"].get("audio") or {} for chunk in chunks]
    song = b"".join(base64.b64decode(delta["data"]) for delta in deltas if delta.get("data"))
    assert heard(song) == (2.0, False)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_the_example_of_the_guide_runs(service: Service, key: str, tmp_path: Path, language: str) -> None:
    """It leaves a song of ten seconds."""
    run_example("OpenAI", language, tmp_path, service.url, key)

    assert heard((tmp_path / "song.mp3").read_bytes()) == (10.0, False)


def test_the_example_of_a_chat_runs(service: Service, key: str, tmp_path: Path) -> None:
    """It leaves a song of ten seconds."""
    run_example("Chat completions", "python", tmp_path, service.url, key)

    assert heard((tmp_path / "song.wav").read_bytes()) == (10.0, False)


def test_the_example_of_local_servers_runs(service: Service, key: str, tmp_path: Path) -> None:
    """It leaves a song of ten seconds."""
    run_example("LocalAI, Lemonade, vLLM-Omni and OmniRoute", "python", tmp_path, service.url, key)

    assert heard((tmp_path / "song.wav").read_bytes()) == (10.0, False)

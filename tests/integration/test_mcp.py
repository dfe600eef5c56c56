"""The MCP server over plain HTTP, by the protocols before 2026-07-28; test_mcp_package.py has the real client."""

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from serve_app.api.mcp.tools import KEPT, TOOLS
from serve_app.music import MusicRequest
from sophia_client import requests
from tests.support.helpers import eventually
from tests.support.paths import ROOT
from tests.support.running import Service, running, simulated

ACCEPT = {"Accept": "application/json, text/event-stream"}
SONG = {"prompt": "warm piano", "duration": 2, "format": "flac", "seed": 7}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a model that has a worker and one that has none, whose caller has a key."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    with running(tmp_path_factory.mktemp("mcp"), models, api={"leave_grace_s": 0.3}) as service:
        service.use_key()
        yield service


@pytest.fixture(scope="module")
def other(service: Service) -> Iterator[Service]:
    """A second API process on the same database."""
    with running(service.args.data_dir, service.args.models, workers=0) as other:
        other.client.headers["Authorization"] = service.client.headers["Authorization"]
        yield other


def messages(answer: httpx.Response) -> list[dict[str, Any]]:
    """The JSON-RPC messages of an answer: one as JSON, or several as events."""
    if answer.headers["content-type"].startswith("application/json"):
        return [answer.json()]
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data]


def send(service: Service, method: str, params: Any = None, session: str | None = None, **more: Any) -> httpx.Response:
    body = {"jsonrpc": "2.0", "method": method, "params": params or {}, "id": 1, **more}
    headers = ACCEPT | ({"Mcp-Session-Id": session} if session else {})
    return service.client.post("/mcp", json={key: body[key] for key in body if body[key] is not None}, headers=headers)


def ask(service: Service, method: str, **params: Any) -> dict[str, Any]:
    """The result of a request."""
    [answer] = messages(send(service, method, params))
    return dict(answer["result"])


def call(service: Service, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """What a tool answers with; its text says the same as its object."""
    result = ask(service, "tools/call", name=tool, arguments=arguments)
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
    return result


def made(service: Service, **fields: Any) -> dict[str, Any]:
    """The job of a finished song."""
    result = call(service, "generate_music", **SONG | fields)
    assert not result["isError"], result
    return dict(result["structuredContent"])


def opened(service: Service) -> str:
    """The id of a new session."""
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    answer = send(service, "initialize", params)
    assert messages(answer)[0]["result"]["serverInfo"]["name"] == "sophia"
    return str(answer.headers["mcp-session-id"])


def test_tools_are_listed_with_the_services_own_fields(service: Service) -> None:
    """Every field of a tool's schema is one of a request or the tool's own, and says what it means."""
    tools = {tool["name"]: tool for tool in ask(service, "tools/list")["tools"]}

    assert list(tools) == list(TOOLS)
    properties = tools["generate_music"]["inputSchema"]["properties"]
    assert set(properties) - set(MusicRequest.model_fields) == {"wait_s", "inline_audio"}
    assert all(field["description"] for field in properties.values())
    assert properties["duration"]["maximum"] == 600
    assert len(json.dumps(tools)) < 20_000  # an assistant reads all of it


def test_a_song_is_made_and_its_progress_reported(service: Service) -> None:
    """A call reports growing progress, and answers with a link that plays without a key, a resource, and the audio if wished."""
    params = {"name": "generate_music", "arguments": {**SONG, "inline_audio": True}, "_meta": {"progressToken": "p"}}

    *progress, last = messages(send(service, "tools/call", params))

    percents = [message["params"]["progress"] for message in progress]
    assert {message["method"] for message in progress} == {"notifications/progress"}
    assert percents == sorted(set(percents))
    assert (percents[0], percents[-1], last["result"]["isError"]) == (0, 100, False)
    [song] = last["result"]["structuredContent"]["songs"]
    _, link, audio = last["result"]["content"]
    file = httpx.get(song["url"]).content
    samples, rate = soundfile.read(io.BytesIO(file))
    assert (rate, len(samples) / rate, bool(abs(samples).max() > 0.01)) == (48_000, 2.0, True)
    assert base64.b64decode(audio["data"]) == file
    assert (link["uri"], link["mimeType"], link["size"]) == (song["resource"], "audio/flac", len(file))


def test_a_song_can_be_submitted_and_looked_at_later(service: Service) -> None:
    """With wait_s 0 the answer is the job at once, which every other API shows; get_song waits for its end."""
    queued = call(service, "generate_music", **SONG, wait_s=0)["structuredContent"]
    finished = call(service, "get_song", id=queued["id"], wait_s=30)["structuredContent"]

    assert queued["state"] in ("queued", "running")
    assert (finished["state"], len(finished["songs"])) == ("succeeded", 1)
    assert service.job(queued["id"])["request"]["prompt"] == "warm piano"
    assert service.client.get(f"/v2/ace-step/status/{queued['id']}").json()["status"] == "COMPLETED"


def test_a_song_that_takes_too_long_goes_on(service: Service) -> None:
    """After wait_s the answer is the unfinished job, with the reason why it waits; it can be listed and cancelled."""
    waiting = call(service, "generate_music", **SONG, model="asleep", wait_s=0.2)
    job = waiting["structuredContent"]

    assert (job["state"], waiting["isError"], "no worker" in job["waiting_for"]) == ("queued", False, True)
    listed = call(service, "list_songs", state="queued", limit=1)["structuredContent"]["jobs"]
    assert [entry["id"] for entry in listed] == [job["id"]]
    assert call(service, "cancel_song", id=job["id"])["structuredContent"]["state"] == "cancelled"
    assert call(service, "cancel_song", id=job["id"])["structuredContent"]["code"] == "conflict"


def test_a_song_is_extended(service: Service) -> None:
    """extend_song makes a longer song from a song, with its prompt and the fields that are given."""
    first = made(service)["id"]

    longer = call(service, "extend_song", song=f"job:{first}/0", after_s=3, caption="brighter")["structuredContent"]

    assert longer["songs"][0]["seconds"] == 5
    assert longer["request"] | {"seed": 0} == {
        "prompt": "brighter", "duration": 5.0, "seed": 0, "format": "flac", "model": "ace-step", "task_type": "repaint",
        "source": f"job:{first}/0", "extend_after": 3.0,
    }  # fmt: skip
    assert "after_s" in call(service, "extend_song", song=first)["structuredContent"]["message"]
    assert KEPT == requests._KEPT


def test_songs_are_resources(service: Service) -> None:
    """A finished song is listed and read as a resource; what is none, or too large, is refused."""
    job = made(service)
    large = made(service, duration=40, format="wav")
    address = job["songs"][0]["resource"]

    listed = [resource["uri"] for resource in ask(service, "resources/list")["resources"]]
    [content] = ask(service, "resources/read", uri=address)["contents"]
    [template] = ask(service, "resources/templates/list")["resourceTemplates"]

    assert address in listed
    assert base64.b64decode(content["blob"]) == httpx.get(job["songs"][0]["url"]).content
    assert template["uriTemplate"] == "sophia://songs/{id}/{number}"
    for wrong, says in (
        ("sophia://songs/x/0", "no resource"),
        (address[:-1] + "7", "no file 7"),
        (large["songs"][0]["resource"], "get_song returns a link"),
    ):
        [refused] = messages(send(service, "resources/read", {"uri": wrong}))
        assert says in refused["error"]["message"]


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "says"),
    [
        (
            "generate_music",
            {"prompt": "x", "duration": 900},
            "invalid_request",
            "duration: must be less than or equal to 600",
        ),
        ("generate_music", {"prompt": "x", "lyrcs": "la"}, "invalid_request", "did you mean 'lyrics'?"),
        ("generate_music", {"prompt": "x", "model": "none"}, "invalid_request", "model: must be a served model"),
        ("generate_music", {}, "invalid_request", "prompt: is required"),
        (
            "generate_music",
            {"prompt": "x", "wait_s": 9000},
            "invalid_request",
            "wait_s: must be less than or equal to 600",
        ),
        ("get_song", {"id": "7"}, "invalid_request", "id: must be an id such as"),
        ("get_song", {"id": "0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"}, "not_found", "There is no job"),
        ("extend_song", {"song": "0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d", "after_s": 3}, "not_found", "There is no job"),
        ("list_models", {"x": 1}, "invalid_request", "x: is not a known field"),
    ],
)
def test_what_is_wrong_is_said_where_the_assistant_reads_it(
    service: Service, tool: str, arguments: dict[str, Any], code: str, says: str
) -> None:
    """The result of a call that is refused is an error with Sophia's code, and names the field."""
    result = call(service, tool, **arguments)

    assert result["isError"]
    assert result["structuredContent"]["code"] == code
    assert says in result["structuredContent"]["message"]


def test_errors_of_the_protocol_are_json_rpc(service: Service) -> None:
    """A missing key, a large body, other methods and unknown tools are answered with JSON-RPC errors."""
    keyless = httpx.post(f"{service.url}/mcp", json={}, headers=ACCEPT)
    large = service.client.post("/mcp", content=b"x" * 2_000_000)
    other_methods = [service.client.get("/mcp"), service.client.delete("/mcp")]
    not_json = service.client.post("/mcp", content=b"{", headers={**ACCEPT, "Content-Type": "application/json"})
    [unknown] = messages(send(service, "tools/call", {"name": "sing"}))

    assert [answer.status_code for answer in (keyless, large, *other_methods, not_json)] == [401, 413, 405, 405, 400]
    assert all(answer.json()["error"]["message"] for answer in (keyless, large, *other_methods, not_json))
    assert "There is no tool 'sing'. Use 'generate_music'" in unknown["error"]["message"]


def test_a_cancellation_reaches_a_call_in_another_process(service: Service, other: Service) -> None:
    """A session's call is cancelled at once by a notification to another API process, and other sessions' calls are not."""
    params = {"name": "generate_music", "arguments": {**SONG, "model": "asleep", "wait_s": 20}}
    sessions = [opened(service), opened(service)]
    with ThreadPoolExecutor(2) as clients:
        calls = [clients.submit(send, service, "tools/call", params, session, id="7") for session in sessions]
        eventually(lambda: len(queued(service)) == 2)
        send(other, "notifications/cancelled", {"requestId": "7"}, sessions[0], id=None)

        [left] = eventually(lambda: found if len(found := queued(service)) == 1 else None)
        service.client.post(f"/v1/jobs/{left}/cancel")
        results = [messages(call.result())[-1]["result"]["structuredContent"]["state"] for call in calls]

    assert results == ["cancelled", "cancelled"]


def queued(service: Service) -> list[str]:
    return [job["id"] for job in service.client.get("/v1/jobs?state=queued").json()["jobs"]]


def test_who_leaves_a_call_without_a_session_cancels_it(service: Service) -> None:
    """The job of a call is cancelled after a grace when its client has closed the connection."""
    params = {"name": "generate_music", "arguments": {**SONG, "model": "asleep"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    with service.client.stream("POST", "/mcp", json=body, headers=ACCEPT):
        [job] = eventually(lambda: queued(service))

    eventually(lambda: service.job(job)["state"] == "cancelled")


def test_the_example_of_the_clients_page_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The example in docs/CLIENTS.md, as it stands there, prints its progress and the address of a song."""
    [example] = re.findall(
        r"^```python\n(.*?)^```",
        (ROOT / "docs" / "CLIENTS.md").read_text().partition("### MCP")[2].partition("\n### ")[0],
        re.MULTILINE | re.DOTALL,
    )
    with running(tmp_path) as service:
        code = compile(example.replace("http://localhost:8000", service.url), "CLIENTS.md", "exec")
        exec(code, {})  # noqa: S102
        *progress, address = capsys.readouterr().out.splitlines()
        seconds = soundfile.info(io.BytesIO(httpx.get(address).content)).duration

    assert (progress[0], progress[-1], round(seconds)) == ("0 % queued", "100 % succeeded", 5)


def test_the_package_is_imported_at_the_first_call() -> None:
    """An API process that nobody calls by MCP does without the package, which costs 0.6 s and 22 MB."""
    code = "import sys, serve_app.api.application; print({'mcp', 'mcp_types', 'sse_starlette'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "set()\n"

"""The MCP server through Serve's proxy, with two API replicas that take turns."""

import asyncio
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from ray import serve

from serve_app.app import build
from serve_app.config import AppArgs
from tests.support.helpers import eventually
from tests.support.running import simulated

pytestmark = [pytest.mark.timeout(300)]

SONG = {"prompt": "warm piano", "duration": 2, "format": "flac"}


@pytest.fixture(scope="module")
def service(one_node: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Sophia with two API processes and one worker."""
    args = AppArgs.model_validate(
        {
            "data_dir": tmp_path_factory.mktemp("mcp"),
            "api": {"replicas": 2, "leave_grace_s": 0.5},
            "models": {"simulated": simulated(step_s=0.1, num_cpus=0.1)},
        }
    )
    serve.run(build(args), name="sophia", route_prefix="/")
    eventually(lambda: one_node.get("/readyz").status_code == 200)
    yield one_node
    serve.delete("sophia")


async def talk(url: str, mode: str) -> tuple[Any, list[float]]:
    """Make a song, then cancel another one as soon as it runs. Returns the first one's answer and its progress in percent."""
    seen: list[float] = []
    runs = anyio.Event()

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async def notice(progress: float, total: float | None, message: str | None) -> None:
        if progress > 0:
            runs.set()

    none_kept = httpx2.Limits(max_keepalive_connections=0)
    async with (
        httpx2.AsyncClient(timeout=60, limits=none_kept) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        answer = await client.call_tool("generate_music", SONG, progress_callback=note)
        async with anyio.create_task_group() as calls:
            calls.start_soon(
                lambda: client.call_tool("generate_music", SONG | {"steps": 200}, progress_callback=notice)
            )
            await runs.wait()
            calls.cancel_scope.cancel()
    return answer, seen


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_progress_and_cancellation_pass_serves_proxy(service: httpx.Client, mode: str) -> None:
    """Progress arrives while the song is made, and a cancelled call ends its job, by protocols without and with sessions."""
    answer, seen = asyncio.run(talk(str(service.base_url).rstrip("/"), mode))

    assert not answer.is_error
    assert len(seen) > 3
    assert seen == sorted(set(seen))
    state = eventually(lambda: found if (found := newest(service)["state"]) != "running" else None)
    assert state == "cancelled"
    assert service.get(answer.structured_content["songs"][0]["url"]).content[:4] == b"fLaC"


def newest(service: httpx.Client) -> dict[str, Any]:
    return dict(service.get("/v1/jobs").json()["jobs"][0])

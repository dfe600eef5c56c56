"""The real `mcp` package, in an environment of its own: does what the lines on its input ask for, and prints a line for each.

A line is a JSON list: the mode of the client (`auto`: the newest protocol, `legacy`: one with sessions), the API key, the call, and
its arguments. The answer is `{"result": …}` or, after an exception, `{"error": class, "text": …}`. The address is in SOPHIA_URL.
Connections are not kept, so that behind a relay each call reaches another API process; nothing else is changed.
"""

import asyncio
import json
import os
import sys
from typing import Any

import anyio
import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client


class Calls:
    """What the tests ask for, by the package's client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: list[tuple[float, str | None]] = []
        self._wanted = 100.0
        self._reached = anyio.Event()

    async def protocol(self) -> Any:
        return self._client.protocol_version

    async def tools(self) -> list[str]:
        return [tool.name for tool in (await self._client.list_tools()).tools]

    async def tool(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a tool answers with, and the progress that was reported."""
        answer = await self._client.call_tool(name, arguments, progress_callback=self._note)
        dumped: dict[str, Any] = answer.model_dump(mode="json", by_alias=True)
        return {**dumped, "progress": self._seen}

    async def cancelled(self, name: str, arguments: dict[str, Any], percent: float) -> bool:
        """Call a tool, and cancel the call once its progress has reached `percent`. Returns whether that has happened."""
        self._wanted = percent
        async with anyio.create_task_group() as calls:
            calls.start_soon(self.tool, name, arguments)
            await self._reached.wait()
            calls.cancel_scope.cancel()
        return calls.cancel_scope.cancelled_caught

    async def resources(self) -> list[dict[str, Any]]:
        return [one.model_dump(mode="json", by_alias=True) for one in (await self._client.list_resources()).resources]

    async def read(self, uri: str) -> dict[str, Any]:
        [content] = (await self._client.read_resource(uri)).contents
        dumped: dict[str, Any] = content.model_dump(mode="json", by_alias=True)
        return dumped

    async def _note(self, progress: float, total: float | None, message: str | None) -> None:
        self._seen.append((progress, message))
        if progress >= self._wanted:
            self._reached.set()


async def _answer(url: str, mode: str, key: str, call: str, arguments: list[Any]) -> dict[str, Any]:
    http = httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {key}"}, timeout=60, limits=httpx2.Limits(max_keepalive_connections=0)
    )
    try:
        async with http, Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client:
            try:
                return {"result": await getattr(Calls(client), call)(*arguments)}
            except Exception as error:
                return _told(error)
    except Exception as error:
        return _told(error)


def _told(error: BaseException) -> dict[str, Any]:
    """The exception, or the first one in a group: the client opens its connection in a task group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return {"error": type(error).__name__, "text": str(error)}


def main() -> None:
    """Answer line by line until the input ends."""
    for line in sys.stdin:
        mode, key, call, *arguments = json.loads(line)
        print(json.dumps(asyncio.run(_answer(os.environ["SOPHIA_URL"], mode, key, call, arguments))), flush=True)


if __name__ == "__main__":
    main()

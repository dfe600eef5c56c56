"""The real `runpod` package, in an environment of its own: does what the lines on its input ask for, and prints a line for each.

A line is a JSON list: the kind of client (`sync` or `asyncio`), the API key, the call, and its arguments. The answer is
`{"result": …}` or, after an exception, `{"error": class, "text": …}`. The base URL comes from RUNPOD_ENDPOINT_BASE_URL, which the
package itself reads; nothing of it is changed.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
import runpod


class Sync:
    """The package's calls that block."""

    def run(self, key: str, endpoint: str, given: dict[str, Any]) -> str:
        return str(runpod.Endpoint(endpoint, key).run(given).job_id)

    def run_sync(self, key: str, endpoint: str, given: dict[str, Any], timeout: int) -> Any:
        return runpod.Endpoint(endpoint, key).run_sync(given, timeout=timeout)

    def status(self, key: str, endpoint: str, job: str) -> Any:
        return self._job(key, endpoint, job).status()

    def output(self, key: str, endpoint: str, job: str, timeout: int) -> Any:
        return self._job(key, endpoint, job).output(timeout=timeout)

    def stream(self, key: str, endpoint: str, job: str) -> list[Any]:
        return list(self._job(key, endpoint, job).stream())

    def cancel(self, key: str, endpoint: str, job: str) -> Any:
        return self._job(key, endpoint, job).cancel()

    def health(self, key: str, endpoint: str) -> Any:
        return runpod.Endpoint(endpoint, key).health()

    def purge_queue(self, key: str, endpoint: str) -> Any:
        return runpod.Endpoint(endpoint, key).purge_queue()

    def _job(self, key: str, endpoint: str, job: str) -> Any:
        return runpod.endpoint.Job(endpoint, job, runpod.Endpoint(endpoint, key).rp_client)


class Asyncio:
    """The package's calls for asyncio."""

    async def run(self, session: Any, key: str, endpoint: str, given: dict[str, Any]) -> str:
        return str((await runpod.AsyncioEndpoint(endpoint, session, key).run(given)).job_id)

    async def status(self, session: Any, key: str, endpoint: str, job: str) -> Any:
        return await self._job(session, key, endpoint, job).status()

    async def output(self, session: Any, key: str, endpoint: str, job: str, timeout: int) -> Any:  # noqa: ASYNC109
        return await self._job(session, key, endpoint, job).output(timeout=timeout)

    async def stream(self, session: Any, key: str, endpoint: str, job: str) -> list[Any]:
        return [chunk async for chunk in self._job(session, key, endpoint, job).stream()]

    async def cancel(self, session: Any, key: str, endpoint: str, job: str) -> Any:
        return await self._job(session, key, endpoint, job).cancel()

    async def health(self, session: Any, key: str, endpoint: str) -> Any:
        return await runpod.AsyncioEndpoint(endpoint, session, key).health()

    async def purge_queue(self, session: Any, key: str, endpoint: str) -> Any:
        return await runpod.AsyncioEndpoint(endpoint, session, key).purge_queue()

    def _job(self, session: Any, key: str, endpoint: str, job: str) -> Any:
        headers = runpod.AsyncioEndpoint(endpoint, session, key).headers
        return runpod.AsyncioJob(endpoint, job, session, {**headers, "X-Request-ID": job})


async def _in_session(call: str, arguments: tuple[Any, ...]) -> Any:
    async with aiohttp.ClientSession() as session:
        return await getattr(Asyncio(), call)(session, *arguments)


def _in_asyncio(call: str, *arguments: Any) -> Any:
    return asyncio.run(_in_session(call, arguments))


def _answer(action: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": action()}
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}


def main() -> None:
    """Answer line by line until the input ends."""
    for line in sys.stdin:
        kind, key, call, *arguments = json.loads(line)
        action = getattr(Sync(), call) if kind == "sync" else partial(_in_asyncio, call)
        print(json.dumps(_answer(partial(action, key, *arguments))), flush=True)


if __name__ == "__main__":
    main()

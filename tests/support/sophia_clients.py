"""Both of our own clients, behind the same blocking calls."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sophia_client import AsyncClient, Client


class Blocking:
    """An AsyncClient whose methods block; what yields returns a list."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **options: self._runner.run(_result(method(*args, **options)))


async def _result(given: Any) -> Any:
    if inspect.isasyncgen(given):
        return [one async for one in given]
    return await given


@contextmanager
def open_client(kind: str, *args: Any, **options: Any) -> Iterator[Any]:
    """A client, `sync` or `asyncio`."""
    if kind == "sync":
        with Client(*args, **options) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        asynchronous = AsyncClient(*args, **options)
        try:
            yield Blocking(asynchronous, runner)
        finally:
            runner.run(asynchronous.aclose())

"""What asyncio does in another way than blocking code."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_BATCH_BYTES = 1024 * 1024


async def pause(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function that works with files, without stopping the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)


async def chunks_of(path: Path) -> AsyncIterator[bytes]:
    """The content of a file."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while content := await asyncio.to_thread(file.read, _BATCH_BYTES):
            yield content
    finally:
        file.close()

"""Where calls that block run: threads of our own, so that what waits for a database or a disk keeps nothing else waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """So many threads for one purpose. What finds none free waits its turn."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What the function gives. Raises what it raises. A caller who is cancelled leaves it running."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **named))

    def close(self) -> None:
        """Take no more calls, drop those that wait, and wait for those that run."""
        self._pool.shutdown(cancel_futures=True)


class Flight(Generic[T]):
    """A call that runs once at a time: who asks while it runs gets the same answer."""

    def __init__(self, threads: Threads, function: Callable[[], T]) -> None:
        self._threads = threads
        self._function = function
        self._under_way: asyncio.Future[T] | None = None

    async def join(self) -> T:
        """What the call gives that runs now, or a new one. Raises what it raises."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.ensure_future(self._threads.run(self._function))
        return await asyncio.shield(self._under_way)

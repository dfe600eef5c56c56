"""Thread pools for blocking calls, so that a slow database or disk never blocks the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A fixed number of threads for one purpose. Calls beyond that number wait for a free thread."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Run a function in a thread; return what it returns and raise what it raises.

        If the caller is cancelled, the function still runs to its end.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **named))

    def close(self) -> None:
        """Accept no more calls, drop the waiting ones, and wait for the running ones."""
        self._pool.shutdown(cancel_futures=True)


class SingleFlight(Generic[T]):
    """Runs a function at most once at a time: callers that arrive while it runs share its result."""

    def __init__(self, threads: Threads, function: Callable[[], T]) -> None:
        self._threads = threads
        self._function = function
        self._running: asyncio.Future[T] | None = None

    async def result(self) -> T:
        """Return the result of the running call, or of a new one if none is running. Raises what the function raises."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._threads.run(self._function))
        return await asyncio.shield(self._running)

"""What the routes of one API process share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from serve_app.api.key_cache import KeyCache
from serve_app.api.limits import Limits
from serve_app.api.threads import Threads
from serve_app.api.watch import JobWatcher
from serve_app.artifacts import ArtifactStore
from serve_app.background.storage_watch import StorageWatch
from serve_app.config import AppArgs
from serve_app.ray_adapters.cluster import Node
from serve_app.store import Store


@dataclass
class Context:
    """The shared parts of one API process. A route gets it as a parameter of type `ContextDep`."""

    args: AppArgs
    store: Store
    artifacts: ArtifactStore
    storage: StorageWatch
    watcher: JobWatcher
    commit: str
    """The commit that Sophia was built from."""
    deployment: str
    """The id of this build of the application; the crash breaker counts failures per deployment."""
    cluster: Callable[[], list[Node]] | None = None
    """Returns the cluster's living nodes; None outside a Ray cluster."""
    keys_needed: bool = False
    """Whether every caller needs an API key, even if no key exists."""
    threads: Threads = field(init=False)
    """Runs the routes' blocking calls."""
    probe_threads: Threads = field(init=False)
    """Runs the readiness check, so that it never waits behind other calls."""
    keys: KeyCache = field(init=False)
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.threads = Threads("work", self.args.api.threads)
        self.probe_threads = Threads("probes", 1)
        self.keys = KeyCache(self.threads, self.store, self.watcher)
        self.limits = Limits(self.args.api)

    def close(self) -> None:
        """Wait for the running blocking calls. Blocks."""
        self.threads.close()
        self.probe_threads.close()


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


ContextDep = Annotated[Context, Depends(_context)]

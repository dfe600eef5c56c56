"""What the routes of one API process share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from serve_app.api.fetching import Fetcher
from serve_app.api.key_cache import KeyCache
from serve_app.api.limits import Limits
from serve_app.api.plan_waits import PlanWaits
from serve_app.api.repeated_calls import RepeatedCalls
from serve_app.api.threads import Threads
from serve_app.api.watch import JobWatcher
from serve_app.artifacts import ArtifactStore
from serve_app.background.storage_watch import StorageWatch
from serve_app.background.webhook_sender import resolve
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
    decoders: Threads = field(init=False)
    """Checks uploaded recordings, each in a decoder process."""
    fetchers: Threads = field(init=False)
    """Fetches the recordings that requests name by an address."""
    fetcher: Fetcher = field(init=False)
    keys: KeyCache = field(init=False)
    limits: Limits = field(init=False)
    repeated_calls: RepeatedCalls = field(init=False)
    plan_waits: PlanWaits = field(init=False)

    def __post_init__(self) -> None:
        self.threads = Threads("work", self.args.api.threads)
        self.probe_threads = Threads("probes", 1)
        self.decoders = Threads("decoders", self.args.inputs.decoders)
        self.fetchers = Threads("fetchers", self.args.inputs.fetchers)
        self.fetcher = Fetcher(self.args.inputs, resolve)
        self.keys = KeyCache(self.threads, self.store, self.watcher)
        self.limits = Limits(self.args.api, self.args.inputs)
        self.plan_waits = PlanWaits(self.store, self.watcher)
        grace_s = self.args.api.leave_grace_s
        self.repeated_calls = RepeatedCalls(self.threads, self.store.waiting_calls, grace_s)

    def close(self) -> None:
        """Wait for the running blocking calls. Blocks."""
        self.threads.close()
        self.probe_threads.close()
        self.decoders.close()
        self.fetchers.close()


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


ContextDep = Annotated[Context, Depends(_context)]

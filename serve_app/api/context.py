"""What every route needs, and who is calling."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve_app.api.limits import Limits
from serve_app.api.origins import check_page
from serve_app.api.threads import Flight, Threads
from serve_app.api.watch import JobWatcher
from serve_app.artifacts import Artifacts
from serve_app.background.storage_watch import StorageWatch
from serve_app.config import AppArgs
from serve_app.errors import Unauthorized
from serve_app.store import Store
from serve_app.store.keys import owner_of
from serve_app.supervision import SupervisedTask

KEYS_FRESH_S: Final = 5.0
"""A new or revoked key takes effect within this time."""


class Keys:
    """The API keys' hashes, read again every few seconds, once for all who ask meanwhile. Who waits by a revoked key ends."""

    def __init__(self, threads: Threads, store: Store, watcher: JobWatcher) -> None:
        self._watcher = watcher
        self._store = store
        self._flight = Flight(threads, self._read)
        self._refresh = SupervisedTask(store.supervisor, "watch of revoked keys", KEYS_FRESH_S)
        self._known: dict[str, str] | None = None
        self._until = 0.0

    async def digests(self) -> dict[str, str]:
        """The hashes by owner, not older than KEYS_FRESH_S. Raises StoreUnavailable."""
        if self._known is None or time.monotonic() > self._until:
            return await self._flight.join()
        return self._known

    async def keep_fresh(self) -> None:
        """Look again and again, also while nobody asks: those who wait ask only once. Ends when it is cancelled."""
        while True:
            await asyncio.sleep(KEYS_FRESH_S)
            try:
                self._watcher.keep_only(await self.digests())
            except Exception as error:  # who waits, waits on until the keys can be read
                self._refresh.record_failure(error)
            else:
                self._refresh.record_success()

    def _read(self) -> dict[str, str]:
        """Read the keys, in a thread. A caller that comes later finds them at once, even before the waiting callers resume."""
        asked_at = time.monotonic()
        known = self._store.keys.digests()
        self._until = asked_at + KEYS_FRESH_S
        self._known = known
        return known


@dataclass
class Context:
    """The parts behind the routes of one API process."""

    args: AppArgs
    store: Store
    artifacts: Artifacts
    storage: StorageWatch
    watcher: JobWatcher
    commit: str
    deployment: str
    cluster: Callable[[], list[Any]] | None = None
    """The living nodes (`reasons.Node`); None outside a cluster."""
    keys_needed: bool = False
    """Whether every caller needs an API key, even while there is none."""
    work: Threads = field(init=False)
    """Where the routes' calls of the store run."""
    probes: Threads = field(init=False)
    """Where /readyz looks at the store, so that work cannot keep it waiting."""
    keys: Keys = field(init=False)
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.work = Threads("work", self.args.api.threads)
        self.probes = Threads("probes", 1)
        self.keys = Keys(self.work, self.store, self.watcher)
        self.limits = Limits(self.args.api)

    def close(self) -> None:
        """Wait for the calls that run. Blocks."""
        self.work.close()
        self.probes.close()


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Parts = Annotated[Context, Depends(_context)]

_bearer = HTTPBearer(
    auto_error=False,
    description="An API key, made by `sophia keys create NAME`. Needed as soon as one exists, or where the operator says so.",
)


async def _owner(
    request: Request, parts: Parts, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    """The name of the caller's key; empty where nobody needs one. Raises Unauthorized, WrongHost, CrossSite, TooManyRequests."""
    try:
        owner = await _who(request, parts, credentials)
    except Unauthorized:
        parts.limits.refuse(request.client.host if request.client else "")
        raise
    parts.limits.ask(owner)
    return owner


async def _who(request: Request, parts: Context, credentials: HTTPAuthorizationCredentials | None) -> str:
    if parts.args.auth.mode == "none":
        return ""
    digests = await parts.keys.digests()
    if not digests:
        if parts.keys_needed or parts.args.auth.mode == "keys":
            raise Unauthorized("There is no API key yet; an operator makes one with 'sophia keys create NAME'")
        check_page(request, parts.args.api.allowed_hosts)
        return ""
    if credentials is None:
        raise Unauthorized("Send an API key as 'Authorization: Bearer KEY'; 'sophia keys create NAME' makes one")
    owner = owner_of(credentials.credentials, digests)
    if owner is None:
        raise Unauthorized("This API key is not known; 'sophia keys create NAME' makes one")
    return owner


Owner = Annotated[str, Depends(_owner)]


async def _operator(parts: Parts, owner: Owner) -> bool:
    """Whether the caller sees what belongs to others: where nobody needs a key, with the only key, and with an operator's."""
    if owner == "" or owner in parts.args.auth.operators:
        return True
    return set(await parts.keys.digests()) == {owner}


Operator = Annotated[bool, Depends(_operator)]

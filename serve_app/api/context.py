"""What every route needs, and who is calling."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve_app.api.storage import StorageWatch
from serve_app.api.watch import JobWatcher
from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs
from serve_app.errors import Unauthorized
from serve_app.store import Store
from serve_app.store.keys import owner_of

KEYS_FRESH_S: Final = 5.0
"""A new or revoked key takes effect within this time."""


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
    _digests: dict[str, str] | None = None
    _digests_at: float = 0.0

    async def digests(self) -> dict[str, str]:
        """The API keys' hashes, read again every few seconds."""
        if self._digests is None or time.monotonic() > self._digests_at + KEYS_FRESH_S:
            self._digests = await asyncio.to_thread(self.store.keys.digests)
            self._digests_at = time.monotonic()
        return self._digests


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Parts = Annotated[Context, Depends(_context)]

_bearer = HTTPBearer(
    auto_error=False,
    description="An API key, made by `sophia keys create NAME`. Needed as soon as one exists, or where the operator says so.",
)


async def _owner(parts: Parts, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """The name of the caller's key; empty where nobody needs one. Raises Unauthorized."""
    if parts.args.auth.mode == "none":
        return ""
    digests = await parts.digests()
    if not digests:
        if parts.keys_needed or parts.args.auth.mode == "keys":
            raise Unauthorized("There is no API key yet; an operator makes one with 'sophia keys create NAME'")
        return ""
    if credentials is None:
        raise Unauthorized("Send an API key as 'Authorization: Bearer KEY'; 'sophia keys create NAME' makes one")
    owner = owner_of(credentials.credentials, digests)
    if owner is None:
        raise Unauthorized("This API key is not known; 'sophia keys create NAME' makes one")
    return owner


Owner = Annotated[str, Depends(_owner)]

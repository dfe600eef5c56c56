"""Links that open one address of a job for a while without an API key, for players and event streams in browsers.

A link's signature is an HMAC with the SHA-256 of its owner's API key. So every API process can check it, nothing more must be kept,
and revoking the key closes all of its links.
"""

import base64
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from serve_app.api.context import Context

LATEST_EXPIRY: Final = 1 << 40
"""The latest time at which a link may expire, in seconds since 1970."""

SIGNATURE_LENGTH: Final = 43
"""The characters of a signature: 32 bytes as base64 without padding."""

_PURPOSE: Final = b"sophia link"
"""Begins what is signed, so that a link's signature is good for nothing else."""


@dataclass(frozen=True, slots=True)
class LinkSigner:
    """Makes signed links of one owner, which all expire at `expires_at` (seconds since 1970)."""

    owner: str
    digest: str | None
    """The SHA-256 of the owner's API key. None if callers need no key: then a link is its path alone, and does not expire."""
    expires_at: int

    def link(self, path: str) -> str:
        """The link to a path of the API, such as `/v1/jobs/{id}/audio/0`. It opens no other path."""
        if self.digest is None:
            return path
        signature = _signature(self.digest, self.owner, path, self.expires_at)
        return f"{path}?{urlencode({'expires': self.expires_at, 'signature': signature})}"


async def link_signer(context: Context, owner: str, ttl_s: float | None = None) -> LinkSigner:
    """What signs links that live for `ttl_s` seconds, by default and at most `api.link_ttl_s`. Raises StoreUnavailable."""
    most_s = context.args.api.link_ttl_s
    lives_s = most_s if ttl_s is None else min(ttl_s, most_s)
    digests = await context.keys.digests()
    return LinkSigner(owner, digests.get(owner), int(time.time() + lives_s))


def owner_of_link(path: str, expires_at: int, signature: str, digests: Mapping[str, str]) -> str | None:
    """The owner who has signed a link, with the SHA-256 of every key by owner. None if nobody has. Expired links count, too."""
    given = signature.encode()
    signers = [
        owner
        for owner, digest in digests.items()
        if hmac.compare_digest(_signature(digest, owner, path, expires_at).encode(), given)
    ]
    return signers[0] if signers else None


def _signature(digest: str, owner: str, path: str, expires_at: int) -> str:
    content = b"\n".join((_PURPOSE, owner.encode(), path.encode(), str(expires_at).encode()))
    return base64.urlsafe_b64encode(hmac.digest(digest.encode(), content, "sha256")).rstrip(b"=").decode()

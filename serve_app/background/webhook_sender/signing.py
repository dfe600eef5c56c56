"""Signs webhooks as Standard Webhooks specifies (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md)."""

import base64
import hmac
from collections.abc import Iterable


def signing_keys(keys: Iterable[bytes], owner: str) -> tuple[bytes, ...]:
    """The keys that sign an owner's webhooks, one for each configured key.

    Each API key has different signing keys, so that no client can forge another's webhooks. Without API keys (`owner` is empty)
    the configured keys sign.
    """
    return tuple(hmac.digest(key, owner.encode(), "sha256") if owner else key for key in keys)


def shown_secret(key: bytes) -> str:
    """The `whsec_` notation of a key, which a receiver configures."""
    return f"whsec_{base64.b64encode(key).decode()}"


def sign(keys: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The webhook-signature header: by each key, the HMAC-SHA256 of id, timestamp (seconds since the epoch) and body."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(hmac.digest(key, content, 'sha256')).decode()}" for key in keys)

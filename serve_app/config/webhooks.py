"""Webhooks: the sender's limits and retries, and the keys that sign."""

import base64
from typing import Annotated, Final

from pydantic import Field

from serve_app.config.section import Section

_PREFIX: Final = "whsec_"


class WebhookArgs(Section):
    """How Sophia notifies clients' servers that a job has ended. Off unless `webhook_secret` is set."""

    allow_private: bool = Field(
        False,
        description="Also send to private, loopback and other internal addresses. Only for deployments where every client is "
        "trusted: clients can then reach whatever this machine reaches.",
    )
    retries_s: list[Annotated[float, Field(gt=0, le=604_800)]] = Field(
        # about what the Standard Webhooks specification advises, over 17 hours
        [5, 30, 120, 600, 3600, 10_800, 18_000, 28_800],
        max_length=20,
        description="Seconds to wait before each retry. After the last retry the delivery has failed.",
    )
    timeout_s: float = Field(15, gt=0, le=60, description="Seconds that one attempt may take in total.")
    per_receiver: int = Field(
        2,
        ge=1,
        description="The most attempts at once to one host, counted by name and by address, on all ports together. An API "
        "process makes at most 8 attempts at once.",
    )
    per_owner: int = Field(4, ge=1, description="The most of an API process's 8 attempts that may be for one API key.")


def decode_keys(secret: str) -> tuple[bytes, ...]:
    """The keys in `webhook_secret`. Raises ValueError, whose text does not repeat the secret."""
    try:
        keys = tuple(base64.b64decode(part.removeprefix(_PREFIX), validate=True) for part in secret.split())
    except ValueError:
        keys = ()
    if not keys or not all(24 <= len(key) <= 64 for key in keys):  # the bounds of the Standard Webhooks specification
        raise ValueError("must be whsec_ followed by 24 to 64 random bytes in base64")
    return keys

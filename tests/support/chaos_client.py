"""A careful client of a service that is being broken."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx

from tests.support.helpers import eventually


def until_answered(
    ask: Callable[[], httpx.Response], statuses: tuple[int, ...], seconds: float = 120
) -> httpx.Response:
    """The first answer with one of these statuses. Any other status below 500 is a failure."""

    def tried() -> httpx.Response | None:
        try:
            answer = ask()
        except httpx.TransportError:
            return None
        # A proxy that has just started knows no routes yet and says 404 itself; Sophia's own answers are never text/plain.
        ours = not answer.headers.get("content-type", "").startswith("text/plain")
        assert answer.status_code >= 500 or answer.status_code in statuses or not ours, answer.text
        return answer if answer.status_code in statuses else None

    return eventually(tried, seconds, every=0.1)


def submit(client: httpx.Client, body: dict[str, Any]) -> str:
    """Submits a job until it is accepted, with one Idempotency-Key for all tries, and returns its id."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    answer = until_answered(lambda: client.post("/v1/jobs", json=body, headers=headers), (200, 202))
    return str(answer.json()["id"])

"""A caller who hangs up before the song is ready."""

from typing import Any

import httpx
import pytest

from tests.support.running import Service


def leave(service: Service, path: str, body: dict[str, Any], prompt: str, seconds: float = 0.3) -> str:
    """Asks for a song and hangs up, again and again until there is a job with this prompt. Returns the job's id."""
    while True:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{service.url}{path}", json=body, headers=service.client.headers, timeout=seconds)
        jobs = service.client.get("/v1/jobs").json()["jobs"]
        found = [str(job["id"]) for job in jobs if job["request"]["prompt"] == prompt]
        if found:
            return found[-1]

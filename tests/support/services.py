"""Actions of several tests on a running service."""

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.support.running import Service


def submitted(service: Service, headers: dict[str, str]) -> str | None:
    answer = httpx.post(f"{service.url}/v1/jobs", json={"prompt": "x"}, headers=headers, timeout=30)
    return str(answer.json()["id"]) if answer.status_code == 202 else None


@contextmanager
def locked(service: Service) -> Iterator[None]:
    """Holds SQLite's write lock, as another program would."""
    connection = sqlite3.connect(service.args.data_dir / "sophia.db", isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def cancel(service: Service) -> int:
    return httpx.post(f"{service.url}/v1/jobs/{uuid.uuid4()}/cancel", timeout=60).status_code

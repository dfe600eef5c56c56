"""A cluster that several files share, and how the process of the Ray tests ends."""

import os
import sys
from collections.abc import Iterator

import httpx
import pytest
import ray
from ray import serve

from tests.support.helpers import free_port

_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process with the tests' status, without the interpreter's own end.

    Ray's C++ threads outlive `ray.shutdown`, and once in some fifty runs they crashed (SIGSEGV) while the interpreter was
    shutting down, after every test had passed.
    """
    if _STATUS in config.stash and "ray" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


@pytest.fixture(scope="session")
def one_node() -> Iterator[httpx.Client]:
    """A client of Serve on a Ray of one node, started once because that takes long. A file that deploys an application deletes it.

    No file that comes between the first and the last that use it may start a Ray in this process.
    """
    port = free_port()
    ray.init(
        "local",
        num_cpus=8,
        include_dashboard=True,
        log_to_driver=bool(os.environ.get("SOPHIA_TEST_LOGS")),
        _system_config={"metrics_report_interval_ms": 1000},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()

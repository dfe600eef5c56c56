"""How the process of the Ray tests ends."""

import os
import sys

import pytest

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

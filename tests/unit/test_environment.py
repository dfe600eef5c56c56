"""The environment in which the tests run."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


def test_tests_know_nothing_of_a_service_that_runs_beside_them() -> None:
    """Settings and Ray addresses of a service on this machine are removed from the tests' environment."""
    theirs = {
        "SOPHIA_DATABASE_URL": "postgresql://live/db",
        "SOPHIA_SECRETS_DIR": "/run/secrets",
        "RAY_ADDRESS": "10.0.0.1:6379",
    }
    program = (
        "import os, tests; from serve_app.config import AppArgs; "
        "print([name for name in os.environ if name.startswith(('SOPHIA_', 'RAY_ADDRESS'))], AppArgs().database_url)"
    )
    environment = {**os.environ, **theirs, "SOPHIA_TEST_LOGS": "1"}

    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)

    assert ran.stdout.strip() == "['SOPHIA_TEST_LOGS'] None", ran.stderr

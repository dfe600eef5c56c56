"""The commit of the running code, as /ping and /v1/health show it."""

import os
import subprocess
from pathlib import Path

UNKNOWN = "unknown"


def this_commit() -> str:
    """SOPHIA_COMMIT, which an image sets; else the commit of the git checkout; else UNKNOWN."""
    if given := os.environ.get("SOPHIA_COMMIT"):
        return given
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - a fixed command
    except OSError:
        return UNKNOWN
    return found.stdout.strip() or UNKNOWN

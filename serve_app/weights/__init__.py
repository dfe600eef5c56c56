"""Finds, fetches, builds and verifies checkpoints, before a device is used."""

from serve_app.weights.check import CheckpointFacts, verify, weight_bytes
from serve_app.weights.find import has_commit, missing_bytes, resolve
from serve_app.weights.hub import DEFAULT_REPOSITORY, DEFAULT_REVISION
from serve_app.weights.manifest import check_hashes
from serve_app.weights.progress import Report
from serve_app.weights.quiet import quiet_libraries

__all__ = [
    "DEFAULT_REPOSITORY",
    "DEFAULT_REVISION",
    "CheckpointFacts",
    "Report",
    "check_hashes",
    "has_commit",
    "missing_bytes",
    "quiet_libraries",
    "resolve",
    "verify",
    "weight_bytes",
]

"""Finds, fetches, builds and verifies checkpoints, before a device is used."""

from serve_app.weights.adapter_files import ADAPTER_CONFIG, PEFT_WEIGHTS, adapter_file
from serve_app.weights.check import CheckpointFacts, verify, weight_bytes
from serve_app.weights.find import conversion, has_commit, missing_bytes, resolve
from serve_app.weights.hub import DEFAULT_REPOSITORY, DEFAULT_REVISION
from serve_app.weights.manifest import check_hashes
from serve_app.weights.progress import Report
from serve_app.weights.quiet import quiet_libraries

__all__ = [
    "ADAPTER_CONFIG",
    "DEFAULT_REPOSITORY",
    "DEFAULT_REVISION",
    "PEFT_WEIGHTS",
    "CheckpointFacts",
    "Report",
    "adapter_file",
    "check_hashes",
    "conversion",
    "has_commit",
    "missing_bytes",
    "quiet_libraries",
    "resolve",
    "verify",
    "weight_bytes",
]

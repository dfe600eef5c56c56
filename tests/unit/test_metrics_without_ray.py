"""Metrics in a process without Ray."""

import subprocess
import sys


def test_outside_ray_nothing_is_made() -> None:
    """Outside Ray every metric can be recorded, but none is created and Serve's metrics are not imported."""
    program = """
import sys
from serve_app import metrics
metrics.step("m", 0.1)
metrics.Gauges().set(metrics.queue({"queued": 1}, None))
sys.exit(metrics._made.cache_info().currsize + ("ray.serve.metrics" in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

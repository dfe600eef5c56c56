"""schemathesis against the running API, with all its checks but one.

That one expects every address below a new job's to exist, and a simulated song has neither codes nor times of lyrics.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.running import running, simulated


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nothing_that_schemathesis_sends_breaks_the_api(tmp_path: Path) -> None:
    """No 5xx, every answer as the OpenAPI page says, valid requests accepted, invalid ones refused, keys asked for."""
    models = {"ace-step": simulated(planner={"source": "simulated"}, simulated={"step_s": 0, "plan_s": 0})}
    inputs = {"voices_per_key": 1000}
    with running(tmp_path, models, workers=2, auth={"mode": "keys"}, inputs=inputs) as service:
        key = service.store.keys.create("fuzz")
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.url}/openapi.json",
            "--checks", "all", "--exclude-checks", "ensure_resource_availability", "--max-examples", "6", "--seed", "7",
            "--request-timeout", "60", "--max-response-time", "60",
            "--header", f"Authorization: Bearer {key}",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.support.fuzz_hooks",
            "FUZZ_KEY": key,
            "PYTHONPATH": str(ROOT),
        }
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    print(next(line.strip() for line in ran.stdout.splitlines() if re.search(r"generated, \d+ passed", line)))

"""Measures which lines of serve_app the tests' own processes run, and compares the share with a floor.

Child processes (Ray's workers, encoders, programs that tests start) are not measured.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT

COVERAGE: Final = [sys.executable, "-m", "coverage"]


def measured_pytest(part: str, folder: Path) -> list[str]:
    """The command that runs pytest and writes its measurement to a file in `folder`, named after the part."""
    return [*COVERAGE, "run", f"--data-file={folder / part.replace(' ', '-')}", "-m", "pytest"]


def print_coverage(folder: Path) -> bool:
    """Print the total of all measurements in `folder` and the files below the floor. Returns whether the total reaches it.

    The floor, in percent, is `fail_under` in pyproject.toml.
    """
    measurements = [str(file) for file in folder.iterdir()]
    data = f"--data-file={folder / 'combined'}"
    report = folder / "report.json"
    subprocess.run([*COVERAGE, "combine", "--quiet", data, *measurements], check=True)
    subprocess.run([*COVERAGE, "json", "--quiet", "--fail-under=0", data, f"-o{report}"], check=True)
    found = json.loads(report.read_text())
    floor: float = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["report"]["fail_under"]
    total: float = found["totals"]["percent_covered"]
    percent = {name: file["summary"]["percent_covered"] for name, file in found["files"].items()}
    print(f"\nCoverage of serve_app: {total:.1f} % of lines; the floor is {floor} %. Files below the floor:")
    for name in sorted((name for name in percent if percent[name] < floor), key=lambda name: percent[name]):
        print(f"{percent[name]:5.0f} %  {name}")
    return total >= floor

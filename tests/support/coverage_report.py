"""Measures which lines of serve_app the tests in tests/integration and tests/unit run, and compares the share with a floor.

SlipCover measures by changing bytecode. Coverage.py does so by a trace function, which on Python 3.11 doubled the time of these
tests, and with which threads that start at the same moment raise errors ("another trace function is being installed").
Child processes (Ray's workers, encoders, programs that tests start) are not measured.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

FLOOR: Final = 90.0
"""The least percentage of lines that the tests must run. They run about 95 %."""

_SLIPCOVER: Final = [sys.executable, "-m", "slipcover", "--json"]
_NOT_MEASURED: Final = "serve_app/scaling/*"
"""Serve pickles the policy's module by value, which SlipCover's changes to its functions prevent."""

_PLUGIN_WARNING: Final = "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning"
"""pytest warns that SlipCover, which is its plugin too, was imported before it."""


def measured_pytest(part: str, folder: Path) -> list[str]:
    """The command that runs pytest and writes its measurement to a file in `folder`, named after the part."""
    file = folder / f"{part.replace(' ', '-')}.json"
    measured = [*_SLIPCOVER, "--source", "serve_app", "--omit", _NOT_MEASURED, "--out", str(file)]
    return [*measured, "-m", "pytest", "-W", _PLUGIN_WARNING]


def print_coverage(folder: Path) -> bool:
    """Print the total of all measurements in `folder` and the files below the floor. Returns whether the total reaches it.

    Returns False if there is no measurement, because every pytest process was killed.
    """
    measurements = [str(file) for file in folder.iterdir()]
    if not measurements:
        print("\nCoverage of serve_app was not measured: no pytest process came to its end.")
        return False
    report = folder / "report.json"
    merge = [*_SLIPCOVER, "--out", str(report), "--merge", *measurements]
    subprocess.run(merge, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(report.read_text())
    total: float = found["summary"]["percent_covered"]
    percent = {name: file["summary"]["percent_covered"] for name, file in found["files"].items()}
    print(f"\nCoverage of serve_app: {total:.1f} % of lines; the floor is {FLOOR:g} %. Files below the floor:")
    for name in sorted((name for name in percent if percent[name] < FLOOR), key=lambda name: percent[name]):
        print(f"{percent[name]:5.0f} %  {name}")
    return total >= FLOOR

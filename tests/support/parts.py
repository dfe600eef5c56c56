"""`make test`: runs the tests as three pytest processes at once: those in tests/ray, and the others in two halves.

Tests of Ray, leases and time limits mostly wait, so one process leaves two cores mostly idle. The first half prints as it runs;
the output of the other two processes follows at the end, and then the coverage of all three. Plain `pytest` runs everything in
one process. So does this while SOPHIA_WRITE_DOCS=1 is set, because three processes would overwrite each other's docs/FAILURES.md.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Final, NoReturn

from tests.support.coverage_report import measured_pytest, print_coverage
from tests.support.failure_codes import WRITING
from tests.support.paths import ROOT

FIRST: Final = "first half"


def parts() -> dict[str, list[str]]:
    """The arguments of pytest for each process, by the part's name."""
    folder = ROOT / "tests"
    files = sorted(str(file) for kind in ("integration", "unit") for file in (folder / kind).glob("test_*.py"))
    return {FIRST: files[::2], "second half": files[1::2], "Ray": [str(folder / "ray")]}


def main() -> NoReturn:
    """Run all parts. Exits with 1 unless all pass and coverage reaches its floor."""
    if WRITING:
        sys.exit(subprocess.run([sys.executable, "-m", "pytest"], check=False).returncode)
    with tempfile.TemporaryDirectory() as folder:
        passed = _run_all(Path(folder))
        covered = print_coverage(Path(folder))
    sys.exit(0 if passed and covered else 1)


def _run_all(folder: Path) -> bool:
    """Run all parts at once, with their measurements in `folder`. Returns whether all passed."""
    commands = {part: [*measured_pytest(part, folder), *arguments] for part, arguments in parts().items()}
    first = commands.pop(FIRST)
    with tempfile.TemporaryFile("w+") as second, tempfile.TemporaryFile("w+") as third:
        beside = [
            (subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT), output)
            for command, output in zip(commands.values(), (second, third), strict=True)
        ]
        try:
            passed = subprocess.run(first, check=False).returncode == 0
        finally:  # after Ctrl-C, too: every pytest got the signal and stops its own Ray
            codes = [_finish(process, output) for process, output in beside]
    return passed and not any(codes)


def _finish(process: "subprocess.Popen[bytes]", output: IO[str]) -> int:
    """Waits for a process, prints its output, and returns its exit code."""
    code = process.wait()
    output.seek(0)
    print(f"\n{output.read()}", flush=True)
    return code


if __name__ == "__main__":
    main()

"""`make test`: runs the tests as three pytest processes at once: those in tests/ray with a few others, and the rest in two halves.

Tests of Ray, leases and time limits mostly wait, so one process leaves two cores mostly idle. The tests in tests/ray take less time
than a half of the others, so they get those of ADDED, too. The first half prints as it runs; the output of the other two processes
follows at the end, and then the coverage of the two halves. Plain `pytest` runs everything in one process. So does this while
SOPHIA_WRITE_DOCS=1 is set, because three processes would overwrite each other's docs/FAILURES.md. The tests of other services'
client packages, test_*_package.py, belong to `make clients`.
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
RAY: Final = "Ray"
ADDED: Final = ("test_client.py", "test_client_documents.py", "test_decoding.py", "test_inputs.py", "test_wires.py")
"""Files of tests/integration that wait much for other processes, whose coverage is not measured, either."""


def parts() -> dict[str, list[str]]:
    """The arguments of pytest for each process, by the part's name."""
    folder = ROOT / "tests"
    files = sorted(str(file) for kind in ("integration", "unit") for file in (folder / kind).glob("test_*.py"))
    added = [str(folder / "integration" / name) for name in ADDED]
    others = [file for file in files if file not in added and not file.endswith("_package.py")]
    return {FIRST: others[::2], "second half": others[1::2], RAY: [str(folder / "ray"), *added]}


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
    commands = {part: [*_pytest(part, folder), *arguments] for part, arguments in parts().items()}
    first = commands.pop(FIRST)
    with tempfile.TemporaryFile("w+") as second, tempfile.TemporaryFile("w+") as third:
        beside = [
            (part, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT), output)
            for (part, command), output in zip(commands.items(), (second, third), strict=True)
        ]
        codes: dict[str, int] = {}
        try:
            codes[FIRST] = subprocess.run(first, check=False).returncode
        finally:  # after Ctrl-C, too: every pytest got the signal and stops its own Ray
            codes |= {part: _finish(process, output) for part, process, output in beside}
    for part, code in codes.items():
        if code:
            print(f"The part {part!r} ended with status {code}.")
    return not any(codes.values())


def _pytest(part: str, folder: Path) -> list[str]:
    """The command that runs pytest. The part of Ray is not measured: most of Sophia runs in Ray's own processes there."""
    return [sys.executable, "-m", "pytest"] if part == RAY else measured_pytest(part, folder)


def _finish(process: "subprocess.Popen[bytes]", output: IO[str]) -> int:
    """Waits for a process, prints its output, and returns its exit code."""
    code = process.wait()
    output.seek(0)
    print(f"\n{output.read()}", flush=True)
    return code


if __name__ == "__main__":
    main()

"""`make test`: runs the tests as three pytest processes at once: those in tests/ray, and the others in two halves.

Tests of Ray, leases and time limits mostly wait, so one process leaves two cores mostly idle. The first half prints as it runs;
the output of the other two processes follows at the end. Plain `pytest` runs everything in one process. So does this
while SOPHIA_WRITE_DOCS=1 is set, because three processes would overwrite each other's docs/FAILURES.md.
"""

import subprocess
import sys
import tempfile
from typing import IO, Final, NoReturn

from tests.support.failure_codes import WRITING
from tests.support.paths import ROOT

PYTEST: Final = [sys.executable, "-m", "pytest"]


def parts() -> dict[str, list[str]]:
    """The arguments of pytest for each process, by the part's name."""
    folder = ROOT / "tests"
    files = sorted(str(file) for kind in ("integration", "unit") for file in (folder / kind).glob("test_*.py"))
    return {"first half": files[::2], "second half": files[1::2], "Ray": [str(folder / "ray")]}


def main() -> NoReturn:
    """Runs all parts; exits with 1 unless all pass."""
    if WRITING:
        sys.exit(subprocess.run(PYTEST, check=False).returncode)
    first, *others = parts().values()
    with tempfile.TemporaryFile("w+") as second, tempfile.TemporaryFile("w+") as third:
        beside = [
            (subprocess.Popen([*PYTEST, *arguments], stdout=output, stderr=subprocess.STDOUT), output)
            for arguments, output in zip(others, (second, third), strict=True)
        ]
        try:
            passed = subprocess.run([*PYTEST, *first], check=False).returncode == 0
        finally:  # after Ctrl-C, too: every pytest got the signal and stops its own Ray
            codes = [_finish(process, output) for process, output in beside]
    sys.exit(0 if passed and not any(codes) else 1)


def _finish(process: "subprocess.Popen[bytes]", output: IO[str]) -> int:
    """Waits for a process, prints its output, and returns its exit code."""
    code = process.wait()
    output.seek(0)
    print(f"\n{output.read()}", flush=True)
    return code


if __name__ == "__main__":
    main()

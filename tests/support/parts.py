"""`make test`: the tests in three parts beside each other, those that run on a real Ray and two of the others.

Ray, Serve, leases and time limits mostly wait: one process of tests leaves most of two cores idle. What the second and third
part say follows at the end. Plain `pytest` runs all in one process; so does this while docs/FAILURES.md is written, as all parts
would write it.
"""

import subprocess
import sys
import tempfile
from typing import IO, Final, NoReturn

from tests.support.failure_codes import WRITING
from tests.support.paths import ROOT

PYTEST: Final = [sys.executable, "-m", "pytest"]
QUICK: Final = "not long and not manifests and not startup"


def parts() -> dict[str, list[str]]:
    """What each part gives to pytest, by the part's name."""
    files = sorted(str(file) for file in (ROOT / "tests").rglob("test_*.py"))
    return {
        "every other file": ["-m", f"not ray and {QUICK}", *files[::2]],
        "the files between": ["-m", f"not ray and {QUICK}", *files[1::2]],
        "Ray": ["-m", f"ray and {QUICK}", *files],
    }


def main() -> NoReturn:
    """Exits with 1 unless all parts pass."""
    if WRITING:
        sys.exit(subprocess.run(PYTEST, check=False).returncode)
    first, *others = parts().values()
    with tempfile.TemporaryFile("w+") as second, tempfile.TemporaryFile("w+") as third:
        beside = [
            (subprocess.Popen([*PYTEST, *words], stdout=said, stderr=subprocess.STDOUT), said)
            for words, said in zip(others, (second, third), strict=True)
        ]
        try:
            passed = subprocess.run([*PYTEST, *first], check=False).returncode == 0
        finally:  # after Ctrl-C, too: pytest has heard it, and ends its Ray
            codes = [_told(process, said) for process, said in beside]
    sys.exit(0 if passed and not any(codes) else 1)


def _told(process: "subprocess.Popen[bytes]", said: IO[str]) -> int:
    code = process.wait()
    said.seek(0)
    print(f"\n{said.read()}", flush=True)
    return code


if __name__ == "__main__":
    main()

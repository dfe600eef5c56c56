"""`make test`: the tests that run on a real Ray, beside the others.

A Ray and its Serve mostly wait for timers: one process of tests leaves half of two cores idle. The Ray half's output follows at the
end. Plain `pytest` runs all in one process; so does this while docs/FAILURES.md is written, as both halves would write it.
"""

import subprocess
import sys
import tempfile
from typing import Final, NoReturn

from tests.failure_codes import WRITING

PYTEST: Final = [sys.executable, "-m", "pytest"]
QUICK: Final = "not long and not manifests and not startup"


def main() -> NoReturn:
    """Exits with 1 unless all of both halves pass."""
    if WRITING:
        sys.exit(subprocess.run(PYTEST, check=False).returncode)
    with tempfile.TemporaryFile("w+") as said:
        on_ray = subprocess.Popen([*PYTEST, "-m", f"ray and {QUICK}"], stdout=said, stderr=subprocess.STDOUT)
        try:
            others = subprocess.run([*PYTEST, "-m", f"not ray and {QUICK}"], check=False)
            print("\nThe tests on Ray:", flush=True)
            on_ray.wait()
        except KeyboardInterrupt:  # pytest has heard it, too, and ends its Ray
            on_ray.wait()
            raise
        said.seek(0)
        print(said.read(), flush=True)
    sys.exit(int(on_ray.returncode != 0 or others.returncode != 0))


if __name__ == "__main__":
    main()

"""Real file systems of a few megabytes."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A separate file system at `folder` until the block ends. Skips the test if mounting is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fills the disk, including room that others free within half a second, and returns the file that does so."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as out:
        for _ in range(10):
            with suppress(OSError):
                while out.write(bytes(65_536)):
                    pass
            time.sleep(0.05)  # a file that is tried out lay there meanwhile, perhaps
    return filler

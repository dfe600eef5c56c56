"""The peak memory of this process."""

from pathlib import Path


def peak_kilobytes() -> int:
    """The most memory that this process has had in RAM, in kilobytes.

    getrusage's ru_maxrss also counts what the parent had before it started this process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

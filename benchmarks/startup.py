"""A worker's start by phase, with the weights on the node's disk, beside the minimum that every start needs.

`python -m benchmarks.startup [CHECKPOINT | --full-size]` prints a table. Without a checkpoint it uses the random one, enlarged and,
like the released one, in bfloat16. `--full-size` makes a checkpoint of the released model's shapes with random weights; on two CPU
cores that takes 6.3 GB of disk, 13 GB of memory and 5 minutes. Each run starts two processes: a worker's load through
AceStepEngine, and a bare process that imports the same modules in the same order and reads the same files. Before each, the
checkpoint's files are dropped from the page cache. The figures are medians over the runs.

Weights are memory-mapped, so the disk is read while tensors are copied to the device. To separate the two, one byte of each page of
a tensor is read right before its copy; the rest of the copy is `to device`. Tensors that are already on their device in the right
number format are not copied. They are read all the same, because nothing else would read them from the disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

RUNS: Final = 3
MEGABYTES: Final = 400

WORKER: Final = """
import json, sys, time
started = time.time()
from pathlib import Path
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine

times = [("process", float(sys.argv[2])), ("imports", started)]
names = {"download": "look up", "load": "read", "warm_up": "warm-up"}

moves = []

def watch_moves(torch):
    plain = torch.Tensor.to
    def to(tensor, *args, **kwargs):
        if tensor.device.type == "cpu":
            tensor.detach().flatten().view(torch.uint8)[::4096].sum()
        started = time.time()
        try:
            return plain(tensor, *args, **kwargs)
        finally:
            moves.append((started, time.time()))
    torch.Tensor.to = to
    return lambda: setattr(torch.Tensor, "to", plain)

def moving():  # transformers copies in several threads: what overlaps counts once
    total = until = 0.0
    for start, end in sorted(moves):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total

def report(phase, fraction, words):
    global unwatch
    if phase in names and names[phase] != times[-1][0]:
        times.append((names[phase], time.time()))
        if phase == "load":
            unwatch = watch_moves(sys.modules["torch"])
        if phase == "warm_up":
            unwatch()

AceStepEngine("m", ModelArgs(source=sys.argv[1], device="auto"), Path("/nowhere")).load(report)
times.append(("end", time.time()))
seconds = {a[0]: b[1] - a[1] for a, b in zip(times, times[1:])}
warm_up = seconds.pop("warm-up")
seconds |= {"read": seconds["read"] - moving(), "to device": moving(), "warm-up": warm_up}
modules = [name for name, module in sys.modules.items() if "site-packages" in str(getattr(module, "__file__", ""))]
print(json.dumps({"seconds": seconds, "modules": modules}))
"""

BARE: Final = """
import contextlib, importlib, json, sys, time, warnings
warnings.simplefilter("ignore")
started = time.time()
for name in json.load(sys.stdin):
    with contextlib.suppress(Exception):  # a few can only be imported by their parent
        importlib.import_module(name)
imported = time.time()
for file in sys.argv[1:]:
    with open(file, "rb", buffering=0) as stream:
        while stream.read(1 << 24):
            pass
print(json.dumps({"imports": imported - started, "read": time.time() - imported}))
"""


@dataclass(frozen=True)
class Startup:
    """Medians in seconds."""

    worker: dict[str, float]
    """process, imports, look up, read (with checks and modules), to device (with the change of number format), warm-up."""
    bare: dict[str, float]
    """imports and read."""

    @property
    def ratio(self) -> float:
        """The worker's imports and read, divided by those of the bare process."""
        return (self.worker["imports"] + self.worker["read"]) / (self.bare["imports"] + self.bare["read"])


def large(embedded: Path, folder: Path) -> Path:
    """A copy of the random checkpoint with MEGABYTES of weights in bfloat16, the released model's format."""
    from tests.support.checkpoints import enlarged, in_bfloat16

    return in_bfloat16(enlarged(embedded, folder, 2 * MEGABYTES))


def measure(checkpoint: Path, runs: int = RUNS) -> Startup:
    """Start `runs` workers and as many bare processes, in turn."""
    workers, bares = zip(*(_once(checkpoint) for _ in range(runs)), strict=True)
    return Startup(_medians(workers), _medians(bares))


def table(startup: Startup) -> str:
    """The figures as a table of text."""
    lines = ["phase      worker    bare", "-" * 25]
    lines += [f"{name:9} {seconds:6.2f} s {_shown(startup.bare.get(name))}" for name, seconds in startup.worker.items()]
    return "\n".join([*lines, f"imports and read take {startup.ratio:.2f} times as long as in the bare process"])


def _once(checkpoint: Path) -> tuple[dict[str, float], dict[str, float]]:
    files = sorted(str(file) for file in checkpoint.rglob("*") if file.is_file())
    _forget(files)
    worker = _run([sys.executable, "-c", WORKER, str(checkpoint), str(time.time())], "")
    _forget(files)
    bare = _run([sys.executable, "-c", BARE, *files], json.dumps(worker["modules"]))
    return worker["seconds"], bare


def _run(command: list[str], given: str) -> Any:
    ran = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def _forget(files: list[str]) -> None:
    """Drop the files from the page cache, so that both processes read from the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _medians(runs: Any) -> dict[str, float]:
    return {name: median(run[name] for run in runs) for name in runs[0]}


def _shown(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:5.2f} s"


@contextmanager
def _checkpoint(given: argparse.Namespace) -> Iterator[Path]:
    from serve_app import weights
    from serve_app.config import ModelArgs
    from tests.support.checkpoints import full_size

    if given.checkpoint:
        yield given.checkpoint
        return
    with tempfile.TemporaryDirectory() as scratch:
        small = weights.resolve("m", ModelArgs(source="random"), Path(scratch), lambda *_: None)
        yield (full_size if given.full_size else large)(small, Path(scratch) / "large")


def main() -> None:
    """Measure the checkpoint that the command line names, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "checkpoint", type=Path, nargs="?", help="the folder of a checkpoint (default: a small random one)"
    )
    which.add_argument(
        "--full-size", action="store_true", help="make one of the released model's shapes: 6.3 GB of disk"
    )
    with _checkpoint(parser.parse_args()) as chosen:
        print(table(measure(chosen)))


if __name__ == "__main__":
    main()

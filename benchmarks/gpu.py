"""The engine on a GPU: the speed of each stage, the memory that it needs, and whether it reports failures correctly.

`python -m benchmarks.gpu [--small] [--json FILE]` needs one CUDA device and about 7 GB of disk. It makes a checkpoint of the
released turbo model's shapes with random weights, so that time and memory are those of the released model, although it generates
noise. `--small` uses the small random checkpoint, to try the program itself; this also runs without a GPU. Ray is not needed.
"""

import argparse
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from benchmarks.measured_engine import Clock
from serve_app import errors, weights
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.protocol import EngineFacts
from serve_app.music import MusicRequest

LENGTHS_S: Final = (10, 30, 60, 240, 600)
VARIATIONS: Final = (2, 4, 8)
REPEATS: Final = 3
SEED: Final = 1
LYRICS: Final = "[verse]\nWe measure twice and cut it once\n[chorus]\nAnd play it loud"

LOST: Final = """
import sys
from pathlib import Path
import torch
from serve_app import errors
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.music import MusicRequest

engine = AceStepEngine("m", ModelArgs(source=sys.argv[1], device="cuda"), Path("/nowhere"))
engine.load(lambda *words: None)
try:  # an index out of range stops the kernel, and with it the process's CUDA context
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].cpu()
except RuntimeError:
    pass
try:
    list(engine.generate(MusicRequest(prompt="x", duration=10, seed=1), lambda *words: None, lambda: False))
except errors.DeviceLost as error:
    print("device_lost:", str(error).splitlines()[0])
"""


class Bench:
    """One loaded engine, its device, and the results of all measurements."""

    def __init__(self, checkpoint: Path) -> None:
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        self.checkpoint = checkpoint
        self.args = ModelArgs(source=str(checkpoint), device=self.device.type)
        self.engine = AceStepEngine("m", self.args, Path("/nowhere"))
        self.weights_bytes = 0
        self.results: dict[str, Any] = {}

    def section(self, name: str, measure: Callable[[], Any]) -> None:
        """Run one measurement and print its result, or its error."""
        began = time.perf_counter()
        try:
            found = measure()
        except Exception as error:
            found = f"FAILED: {type(error).__name__}: {error}"
        self.results[name] = found
        print(f"\n## {name} ({time.perf_counter() - began:.1f} s)\n{_table(found)}", flush=True)

    def load(self) -> dict[str, Any]:
        """Seconds by phase, and the facts that the engine reports."""
        marks: list[tuple[str, float]] = []

        def report(phase: str, fraction: float | None, words: str) -> None:
            if not marks or marks[-1][0] != phase:
                marks.append((phase, time.perf_counter()))

        facts: EngineFacts = self.engine.load(report)
        marks.append(("end", time.perf_counter()))
        self.weights_bytes = facts.weights_bytes
        phases = {f"{mark[0]} [s]": round(after[1] - mark[1], 2) for mark, after in itertools.pairwise(marks)}
        return phases | {
            "device": facts.device,
            "dtype": facts.dtype,
            "weights [GB]": round(facts.weights_bytes / 1e9, 2),
            "peak [GB]": round((facts.peak_memory or 0) / 1e9, 2),
            "versions": dict(facts.versions),
        }

    def play(self, request: MusicRequest, stopped: Callable[[], bool] = lambda: False) -> tuple[Clock, list[bytes]]:
        """Generate the songs of one request. Returns seconds by stage, and the samples of each song."""
        clock = Clock(self.device)
        clock.start()
        songs = [song.samples.tobytes() for song in self.engine.generate(request, clock.on_step, stopped)]
        clock.finish()
        return clock, songs

    def by_length(self, lengths_s: tuple[int, ...]) -> list[dict[str, Any]]:
        """One variation of each length: median seconds by stage, peak memory, and speed relative to real time."""
        return [self._measured(_request(length_s), length_s) for length_s in lengths_s]

    def by_variations(self) -> list[dict[str, Any]]:
        """The same figures for several songs of 30 s at once."""
        return [{"variations": n} | self._measured(_request(30, variations=n), 30 * n) for n in VARIATIONS]

    def _measured(self, request: MusicRequest, audio_s: float) -> dict[str, Any]:
        self.play(request)  # the first song of a shape selects its kernels
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clocks = []
        totals = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            clocks.append(self.play(request)[0])
            totals.append(time.perf_counter() - began)
        stages = {
            f"{name} [s]": _middle(clock.seconds.get(name, 0.0) for clock in clocks) for name in clocks[0].seconds
        }
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        return {
            "audio [s]": audio_s,
            "total [s]": _middle(totals),
            **stages,
            "a step [ms]": round(1000 * median(step for clock in clocks for step in clock.steps_s), 2),
            "peak [GB]": round(peak / 1e9, 2),
            "x real time": round(audio_s / median(totals)),
        }

    def same_seed(self) -> dict[str, bool]:
        """Whether one request gives the same bytes twice, and whether another seed gives other bytes.

        Random weights may ignore the noise, which would make the first answer worthless.
        """
        first = self.play(_request(30))[1]
        again = self.play(_request(30))[1]
        other = self.play(_request(30).model_copy(update={"seed": SEED + 1}))[1]
        return {"the same seed, the same bytes": first == again, "another seed, other bytes": first != other}

    def collections(self) -> int:
        """How many full garbage collections one song causes. With torch loaded, each takes 0.2 s."""
        full = []

        def count(phase: str, what: dict[str, int]) -> None:
            if phase == "start" and what["generation"] == 2:
                full.append(phase)

        gc.collect()
        gc.callbacks.append(count)
        try:
            self.play(_request(10))
        finally:
            gc.callbacks.remove(count)
        return len(full)

    def cancelled(self) -> dict[str, Any]:
        """How long a song of 600 s takes to stop when asked to, and whether the next song is the same as before."""
        before = self.play(_request(10))[1]
        asked = [0.0]
        reports = [0]

        def stopped() -> bool:
            reports[0] += 1
            if reports[0] == 4:
                asked[0] = time.perf_counter()
            return reports[0] >= 4

        try:
            self.play(_request(600), stopped)
        except errors.Stopped:
            stopped_s = time.perf_counter() - asked[0]
        return {"stops after [s]": round(stopped_s, 3), "next song as before": self.play(_request(10))[1] == before}

    def out_of_memory(self) -> dict[str, Any]:
        """The error of a song while only 1 GB is free, and whether the next song is the same as before once memory is free."""
        before = self.play(_request(10))[1]
        with self._memory_taken(leave=1 << 30):
            try:
                self.play(_request(600, variations=8))
                message = "NOTHING: it fitted"
            except errors.OutOfDeviceMemory as error:
                message = f"{error.code}: {error}"
        return {"error": message, "next song as before": self.play(_request(10))[1] == before}

    def no_room_to_load(self) -> str:
        """The error of a second engine on a device without enough free memory. It should load nothing."""
        with self._memory_taken(leave=self.weights_bytes // 2):
            try:
                AceStepEngine("n", self.args, Path("/nowhere")).load(lambda *words: None)
            except errors.DeviceMemory as error:
                return f"{error.code}: {error}"
        return "NOTHING: it loaded"

    def device_lost(self) -> str:
        """The error of a process whose CUDA context is broken."""
        words = [sys.executable, "-c", LOST, str(self.checkpoint)]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
        return ended.stdout.strip() or f"NOTHING; it wrote {ended.stderr[-300:]}"

    def busy(self) -> dict[str, Any]:
        """How long the device computes during a song. In the rest of the time the CPU prepares and launches kernels."""
        from torch.profiler import ProfilerActivity, profile

        found = {}
        for length_s in (10, 60):
            self.play(_request(length_s))
            began = time.perf_counter()
            with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
                list(self.engine.generate(_request(length_s), lambda *words: None, lambda: False))
                torch.cuda.synchronize()
            wall_s = time.perf_counter() - began
            events = [event for event in profiler.events() if event.device_type.name == "CUDA"]
            kernels_s = sum(event.device_time for event in events) / 1e6
            found[f"{length_s} s"] = {
                "with the profiler [s]": round(wall_s, 3),
                "in kernels [s]": round(kernels_s, 3),
                "kernels": len(events),
            }
        return found

    def ceilings(self) -> dict[str, float]:
        """The device's best speed for a large bf16 matrix product and for a large copy."""
        a = torch.randn(8192, 8192, device=self.device, dtype=torch.bfloat16)
        b = torch.randn(8192, 8192, device=self.device, dtype=torch.bfloat16)
        source = torch.randn(1 << 30, device=self.device, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        product_s = self._quickest(lambda: a @ b)
        copy_s = self._quickest(lambda: target.copy_(source))
        return {
            "bf16 product [TFLOP/s]": round(2 * 8192**3 / product_s / 1e12),
            "copy, read and written [GB/s]": round(2 * source.nbytes / copy_s / 1e9),
        }

    def _quickest(self, action: Callable[[], object]) -> float:
        seconds = []
        for _ in range(12):
            torch.cuda.synchronize()
            began = time.perf_counter()
            action()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    @contextmanager
    def _memory_taken(self, leave: int) -> Iterator[None]:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        taken = [torch.empty(max(free - leave, 0), dtype=torch.uint8, device=self.device)]
        try:
            yield
        finally:
            taken.clear()
            torch.cuda.empty_cache()


def main() -> int:
    """Measure everything. Returns 1 if a measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--small", action="store_true", help="the random checkpoint; runs without a GPU too")
    parser.add_argument("--json", type=Path, help="a file to write the results to")
    given = parser.parse_args()
    if not given.small and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here. With --small it runs on the CPU.")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(_checkpoint(Path(scratch), given.small))
        bench.section("load", bench.load)
        bench.section("load again", bench.load)
        if bench.device.type == "cuda":
            bench.section("ceilings", bench.ceilings)
        bench.section("by length", lambda: bench.by_length(LENGTHS_S[:2] if given.small else LENGTHS_S))
        bench.section("by variations", bench.by_variations)
        bench.section("same seed", bench.same_seed)
        bench.section("full garbage collections a song", bench.collections)
        bench.section("cancelled", bench.cancelled)
        if bench.device.type == "cuda":
            bench.section("where the time goes", bench.busy)
            bench.section("out of memory", bench.out_of_memory)
            bench.section("no room to load", bench.no_room_to_load)
            bench.section("device lost", bench.device_lost)
    if given.json:
        given.json.write_text(json.dumps(bench.results, indent=1))
    return int(any("FAILED" in str(found) or "NOTHING" in str(found) for found in bench.results.values()))


def _checkpoint(scratch: Path, small: bool) -> Path:
    from tests.support.checkpoints import full_size

    embedded = weights.resolve("m", ModelArgs(source="random", device="cpu"), scratch, lambda *words: None)
    if small:
        return embedded
    began = time.perf_counter()
    made = full_size(embedded, scratch / "full")
    print(f"made a full-size checkpoint in {time.perf_counter() - began:.1f} s", flush=True)
    return made


def _request(length_s: int, variations: int = 1) -> MusicRequest:
    return MusicRequest(
        prompt="a warm folk song with a fiddle", lyrics=LYRICS, duration=length_s, seed=SEED, variations=variations
    )


def _middle(seconds: Any) -> float:
    return round(float(median(seconds)), 3)


def _table(found: Any) -> str:
    if isinstance(found, list):
        head = list(found[0])
        lines = [head, ["---"] * len(head), *([str(row.get(name, "")) for name in head] for row in found)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if isinstance(found, dict):
        return "\n".join(f"{name}: {value}" for name, value in found.items())
    return str(found)


if __name__ == "__main__":
    sys.exit(main())

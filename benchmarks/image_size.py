"""The size of the container image, computed from its parts, without building it or downloading a CUDA wheel.

`python -m benchmarks.image_size` prints the table of docs/OPERATIONS.md. It has three sources:

* The dependencies in pyproject.toml and their own dependencies: the sizes of the files in their RECORDs in this environment.
* torch's CUDA build and the wheels that only it needs (`CUDA`): the sizes in the zip directories of the wheels. They were read on
  2026-11-24 from PyPI's files of torch 2.13.0 for CPython 3.11 on x86_64 by range requests, without downloading the wheels.
* The Python image, its three Debian packages and our code: an allowance (`REST_BYTES`), since no registry of images was reachable.

Sizes are those of the installed, uncompressed files on a node's disk. For the download, the CUDA part is 42 % smaller.
"""

import argparse
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parent.parent
BUDGET_BYTES: Final = 6_000_000_000
"""The old deployment's image was 14.8 GB. Raise this only for a reason that justifies minutes at every cold start."""

TORCH: Final = "2.13.0"
"""The release whose CUDA wheels were read. A test fails if constraints.txt has another version."""

CUDA: Final[dict[str, tuple[int, int]]] = {
    # requirement: (bytes of the wheel, bytes installed)
    "torch==2.13.0": (526_574_961, 1_094_878_091),
    "triton==3.7.1": (197_701_306, 721_167_722),
    "nvidia-cublas==13.1.1.3": (423_138_758, 597_144_857),
    "nvidia-cudnn-cu13==9.20.0.48": (366_173_588, 493_819_932),
    "nvidia-cufft==12.0.0.61": (214_085_489, 287_646_258),
    "nvidia-cusolver==12.0.4.66": (200_941_980, 245_427_965),
    "nvidia-nccl-cu13==2.29.7": (205_976_000, 237_052_752),
    "nvidia-cusparselt-cu13==0.8.1": (170_148_586, 233_961_706),
    "nvidia-cuda-nvrtc==13.0.88": (90_215_200, 228_019_534),
    "nvidia-cusparse==12.6.3.3": (145_942_937, 162_926_567),
    "nvidia-curand==10.4.0.35": (59_544_258, 134_866_646),
    "nvidia-nvjitlink==13.5.37": (46_642_491, 117_330_563),
    "nvidia-nvshmem-cu13==3.4.5": (60_412_546, 80_816_650),
    "nvidia-cuda-cupti==13.0.85": (10_715_597, 45_233_935),
    "cuda-bindings==13.5.0": (8_390_178, 31_137_830),
    "nvidia-cuda-runtime==13.0.96": (2_243_632, 7_251_857),
    "nvidia-cufile==1.15.1.6": (1_223_672, 3_321_513),
    "nvidia-nvtx==13.0.85": (148_047, 590_303),
    "cuda-pathfinder==1.9.0": (63_362, 189_711),
    "cuda-toolkit==13.0.3.0": (2_512, 18_024),
}

REST_BYTES: Final = 250_000_000
"""python:3.11-slim-bookworm, procps, tini, wget and our code: an allowance, not a measurement."""


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    print("| part | MB installed |\n|---|---|")
    for part, size in parts():
        print(f"| {part} | {size / 1e6:,.0f} |")
    print(f"| **total** (budget {BUDGET_BYTES / 1e6:,.0f}) | **{total_bytes() / 1e6:,.0f}** |")


def total_bytes() -> int:
    """The whole image, uncompressed."""
    return sum(size for _, size in parts())


def parts() -> list[tuple[str, int]]:
    """The parts of the image and their installed bytes. Dependencies under 50 MB are one part."""
    sizes = {name: _installed_bytes(found) for name, found in dependencies().items() if name != "torch"}
    large = sorted(((size, name) for name, size in sizes.items() if size >= 50_000_000), reverse=True)
    small = {name: size for name, size in sizes.items() if size < 50_000_000}
    return [
        ("torch, CUDA build, with the CUDA runtime's wheels", sum(installed for _, installed in CUDA.values())),
        *((name, size) for size, name in large),
        (f"{len(small)} more dependencies", sum(small.values())),
        ("Python image, Debian packages, our code (allowance)", REST_BYTES),
    ]


def dependencies() -> dict[str, Distribution]:
    """Every dependency of pyproject.toml, direct or indirect, in this environment, without the development tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in project["dependencies"]]
    seen: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) not in seen:
            seen.add(str(wanted))
            found[canonicalize_name(wanted.name)] = distribution(wanted.name)
            waiting += _asked_for_by(wanted)
    return found


def _asked_for_by(wanted: Requirement) -> Iterator[Requirement]:
    """The dependencies of a distribution on this platform, with its requested extras."""
    for text in distribution(wanted.name).requires or ():
        needed = Requirement(text)
        extras = [{"extra": extra} for extra in ("", *wanted.extras)]
        if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
            yield needed


def _installed_bytes(found: Distribution) -> int:
    return sum(file.size or 0 for file in found.files or ())


if __name__ == "__main__":
    main()

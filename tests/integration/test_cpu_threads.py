"""How many threads a worker on the CPU computes with."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

import pytest
import torch

from serve_app.config import ModelArgs
from serve_app.config.models import ScalingArgs
from serve_app.engine.ace_step.device import set_threads
from tests.support.paths import ROOT

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def former_threads() -> Iterator[None]:
    """Gives the process its threads back."""
    former = torch.get_num_threads()
    yield
    torch.set_num_threads(former)


@pytest.mark.parametrize(
    ("cpu_threads", "max_workers", "expected"), [(3, 1, 3), ("auto", 1, CORES), ("auto", 10 * CORES, 1)]
)
def test_workers_share_the_cores(cpu_threads: Literal["auto"] | int, max_workers: int, expected: int) -> None:
    """A worker has the configured number of threads; with `auto`, the cores are divided by the most workers."""
    args = ModelArgs(cpu_threads=cpu_threads, scaling=ScalingArgs(max_workers=max_workers))

    set_threads(args, torch.device("cpu"))

    assert torch.get_num_threads() == expected


def test_a_worker_on_a_gpu_keeps_its_threads() -> None:
    """On a GPU the number of threads stays as Ray set it."""
    torch.set_num_threads(3)

    set_threads(ModelArgs(cpu_threads=1), torch.device("cuda"))

    assert torch.get_num_threads() == 3


@pytest.mark.long
def test_threads_that_wait_let_other_processes_run() -> None:
    """OpenMP, which tells its settings when it starts, lets a thread spin 1,000 times and not 300,000 before it sleeps."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment["OMP_DISPLAY_ENV"] = "verbose"
    program = "from serve_app.engine.ace_step.loading import import_packages; import_packages()"

    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert "GOMP_SPINCOUNT = '1000'" in ran.stderr

"""How much memory a conversion takes, in a process of its own, and a conversion at full size."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from serve_app import weights
from serve_app.config import ModelArgs
from tests.support.checkpoints import enlarged, full_size
from tests.support.layouts import make_all_in_one, make_original, make_parts

CONVERT = """
import json, sys
from pathlib import Path
import diffusers, transformers
from diffusers.pipelines import ace_step
from serve_app import weights
from serve_app.config import ModelArgs
def peak():
    # Not getrusage, whose maximum includes that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
args = ModelArgs(source=sys.argv[1], parts_from=sys.argv[2])
before = peak()
folder = weights.resolve("m", args, Path(sys.argv[3]), lambda *report: None)
print(json.dumps([str(folder), before, peak()]))
"""


def _converted(source: Path, parts: Path, cache: Path) -> tuple[Path, int, int]:
    """The converted checkpoint, and the highest memory of the process before and after, in bytes."""
    command = [sys.executable, "-c", CONVERT, str(source), str(parts), str(cache)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    folder, before, after = json.loads(output.splitlines()[-1])
    return Path(folder), before, after


@pytest.mark.long
@pytest.mark.parametrize("layout", ["original", "comfyui"])
def test_a_conversion_does_not_hold_a_tensor_in_memory(layout: str, checkpoint: Path, tmp_path: Path) -> None:
    """A tensor of 300 MB adds a fraction of its size to the memory of the process that converts it."""
    large = enlarged(checkpoint, tmp_path / "large", megabytes=300)
    make = make_original if layout == "original" else make_all_in_one
    source = make(large, tmp_path / layout)

    folder, before, after = _converted(source, make_parts(large, tmp_path / "parts"), tmp_path / "cache")

    print(f"{layout}: {before / 1e6:.0f} MB before, at most {after / 1e6:.0f} MB while converting a tensor of 300 MB")
    assert (folder / "text_encoder" / "model.safetensors").stat().st_size > 300e6
    assert after - before < 200e6  # most of it: classes that diffusers imports when they are needed


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed after the test, since pytest keeps its own folders."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        yield Path(folder)


@pytest.mark.long
def test_a_full_size_checkpoint_in_the_original_layout_is_converted(checkpoint: Path, scratch: Path) -> None:
    """The released turbo model's shapes, random: converted with at most 2 GB of memory, tensor by tensor the same."""
    made = full_size(checkpoint, scratch / "full")
    config = {"num_hidden_layers": 24, "is_turbo": True, "model_version": "turbo"}
    source = make_original(made, scratch / "original", config=config)
    began = time.monotonic()

    folder, before, after = _converted(source, scratch, scratch / "cache")

    facts = weights.verify(folder, ModelArgs())
    print(
        f"{facts.bytes / 1e9:.2f} GB converted in {time.monotonic() - began:.0f} s, memory {before / 1e9:.2f} GB before, at most "
        f"{after / 1e9:.2f} GB"
    )
    assert facts.parameters == weights.verify(made, ModelArgs()).parameters
    assert after < 2e9
    for component in facts.numbers:
        _assert_same(folder / component, made / component)


def _assert_same(found: Path, expected: Path) -> None:
    places = {name: file for file in found.glob("*.safetensors") for name in _names(file)}
    count = 0
    for file in expected.glob("*.safetensors"):
        for name in _names(file):
            assert torch.equal(_tensor(places[name], name), _tensor(file, name)), name
            count += 1
    assert count == len(places)


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as tensors:
        found: torch.Tensor = tensors.get_tensor(name)
        return found

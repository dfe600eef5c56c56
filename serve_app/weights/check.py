"""Checking a checkpoint that is there: what is cheap to find out before its weights are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app import errors
from serve_app.config import ModelArgs, Variant
from serve_app.weights.layout import (
    AGAIN,
    COMPONENTS,
    DIFFUSERS_CLASSES,
    OPTIONAL,
    RANDOM_MARKER,
    need,
    read_json,
    wrong_layout,
)


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checked checkpoint is. `bytes` is the size of its weight files."""

    folder: Path
    variant: Variant
    bytes: int
    numbers: Mapping[str, int]
    """How many numbers (parameters and buffers) the weight files hold, by component."""
    has_audio_tokenizer: bool
    random_weights: bool
    files: Mapping[str, int]
    """Weight files and their sizes in bytes, by path inside the folder."""

    @property
    def parameters(self) -> int:
        """All numbers of the checkpoint: times the bytes of a dtype, what a device must hold."""
        return sum(self.numbers.values())


def verify(folder: Path, args: ModelArgs) -> CheckpointFacts:
    """Checks a checkpoint in `folder` without reading its weights: milliseconds, whatever its size.

    Raises:
        WrongLayout, WrongClass, MissingFile, CorruptFile: naming the file and what to do.
    """
    index = _model_index(folder)
    present = [name for name in COMPONENTS if _present(folder, name, index.get(name))]
    weights = {name: files for name in present if (files := _weight_files(folder, name))}
    numbers = {name: sum(_check_safetensors(file) for file in files) for name, files in weights.items()}
    sizes = {str(file.relative_to(folder)): file.stat().st_size for files in weights.values() for file in files}
    return CheckpointFacts(
        folder=folder,
        variant=args.variant or _variant(read_json(folder / "transformer" / "config.json")),
        bytes=sum(sizes.values()),
        numbers=numbers,
        has_audio_tokenizer=all(name in present for name in OPTIONAL),
        random_weights=(folder / RANDOM_MARKER).exists(),
        files=sizes,
    )


def _model_index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    if not file.exists():
        raise wrong_layout(str(folder), {path.name for path in folder.iterdir()})
    index = read_json(file)
    if index.get("_class_name") != "AceStepPipeline":
        raise errors.WrongClass(
            f"{file} names the pipeline {index.get('_class_name')!r}; Sophia plays AceStepPipeline. Name another source."
        )
    return index


def _present(folder: Path, name: str, entry: list[str | None] | None) -> bool:
    """Whether model_index.json has the component, of the expected class, with its configuration beside it."""
    if not entry or entry[1] is None:
        if name in OPTIONAL:
            return False
        raise errors.MissingFile(
            f"{folder / 'model_index.json'} names no {name}: fetch or convert the checkpoint again."
        )
    _check_class(folder, name, entry[1])
    for file in _config_files(folder, name):
        need(file)
    return True


def _check_class(folder: Path, name: str, found: str) -> None:
    expected = DIFFUSERS_CLASSES.get(name, {"text_encoder": "Qwen3Model"}.get(name, found))
    if found != expected:
        raise errors.WrongClass(
            f"{folder / 'model_index.json'} names the class {found} for {name}; ACE-Step 1.5 has {expected}. Name another "
            "source, or fetch the checkpoint again."
        )


def _config_files(folder: Path, name: str) -> list[Path]:
    if name == "scheduler":
        return [folder / name / "scheduler_config.json"]
    if name == "tokenizer":
        whole = (folder / name / "tokenizer.json").exists() or not (folder / name / "vocab.json").exists()
        return [folder / name / file for file in (("tokenizer.json",) if whole else ("vocab.json", "merges.txt"))]
    return [folder / name / "config.json"]


def _weight_files(folder: Path, name: str) -> list[Path]:
    """A component's weights: one file, or the shards that its index names."""
    if name in ("scheduler", "tokenizer"):
        return []
    whole = folder / name / ("model" if name == "text_encoder" else "diffusion_pytorch_model")
    index = whole.with_name(whole.name + ".safetensors.index.json")
    if not index.exists():
        return [need(whole.with_name(whole.name + ".safetensors"))]
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    return [need(index.with_name(shard)) for shard in shards]


def _check_safetensors(file: Path) -> int:
    """How many numbers `file` holds, after comparing its size with its header, which finds a cut file at once.

    The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian length N, N bytes of JSON with
    each tensor's `shape` and `data_offsets` [begin, end), then the data.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            # The format allows no header over 100 MB; a garbage length must not be allocated.
            header: dict[str, Any] = json.loads(stream.read(length if length <= 100_000_000 else 0))
        tensors = [tensor for key, tensor in header.items() if key != "__metadata__"]
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        numbers = sum(_product(tensor["shape"]) for tensor in tensors)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise errors.CorruptFile(f"{file} has no readable safetensors header: {AGAIN}") from error
    if size != expected:
        raise errors.CorruptFile(f"{file} has {size} bytes where its header says {expected}: {AGAIN}")
    return numbers


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _variant(transformer: Mapping[str, Any]) -> Variant:
    """turbo, base or sft, from the transformer's `is_turbo` and `model_version`, which diffusers' converter writes."""
    said = str(transformer.get("model_version") or "").lower()
    if transformer.get("is_turbo") or "turbo" in said:
        return "turbo"
    return "sft" if "sft" in said else "base"

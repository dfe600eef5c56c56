"""Checks a checkpoint on disk without reading its weights: its layout, classes, files and sizes."""

import math
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
    ENCODER_FILE,
    INDEX,
    OPTIONAL,
    RANDOM_MARKER,
    need,
    read_json,
    wrong_layout,
)


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint that passed `verify`."""

    folder: Path
    variant: Variant
    bytes: int
    """Size of all weight files."""
    numbers: Mapping[str, int]
    """How many numbers (parameters and buffers) the weight files of each component hold."""
    has_audio_tokenizer: bool
    random_weights: bool
    files: Mapping[str, int]
    """Size in bytes of each weight file, by its path inside the folder."""

    @property
    def parameters(self) -> int:
        """How many numbers the checkpoint holds. Times the bytes of a dtype, this is the memory that the weights need."""
        return sum(self.numbers.values())


def verify(folder: Path, args: ModelArgs) -> CheckpointFacts:
    """Checks the checkpoint in `folder`. Takes milliseconds for a checkpoint of any size, because it reads only headers.

    Raises:
        WrongLayout, WrongClass, MissingFile, CorruptFile: the message names the file and what to do.
    """
    index = _model_index(folder)
    present = [name for name in COMPONENTS if _present(folder, name, index.get(name))]
    weights = {name: files for name in present if (files := _weight_files(folder, name))}
    numbers = {name: sum(_count_numbers(file) for file in files) for name, files in weights.items()}
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


def weight_bytes(folder: Path) -> int:
    """Size of the weight files in `folder`, which need not be a valid checkpoint."""
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))


def _model_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    if not file.exists():
        raise wrong_layout(str(folder), {path.name for path in folder.iterdir()})
    index = read_json(file)
    if index.get("_class_name") != "AceStepPipeline":
        raise errors.WrongClass(
            f"{file} names the pipeline {index.get('_class_name')!r}, but Sophia can only load AceStepPipeline. Set another source."
        )
    return index


def _present(folder: Path, name: str, entry: list[str | None] | None) -> bool:
    """Whether model_index.json names the component. If it does, checks the component's class and configuration files."""
    if not entry or entry[1] is None:
        if name in OPTIONAL:
            return False
        raise errors.MissingFile(
            f"{folder / INDEX} does not name the component {name}. Fetch or convert the checkpoint again."
        )
    _check_class(folder, name, entry[1])
    for file in _config_files(folder, name):
        need(file)
    return True


def _check_class(folder: Path, name: str, found: str) -> None:
    expected = DIFFUSERS_CLASSES.get(name, {"text_encoder": "Qwen3Model"}.get(name, found))
    if found != expected:
        raise errors.WrongClass(
            f"{folder / INDEX} names the class {found} for {name}, but ACE-Step 1.5 uses {expected}. Set another "
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
    """The weight files of a component: a single file, or the shards that its index lists."""
    if name in ("scheduler", "tokenizer"):
        return []
    own_encoder = [folder / ENCODER_FILE] if name == "vae" and (folder / ENCODER_FILE).exists() else []
    whole = folder / name / ("model" if name == "text_encoder" else "diffusion_pytorch_model")
    index = whole.with_name(whole.name + ".safetensors.index.json")
    if not index.exists():
        return [need(whole.with_name(whole.name + ".safetensors")), *own_encoder]
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    return [*(need(index.with_name(shard)) for shard in shards), *own_encoder]


def _count_numbers(file: Path) -> int:
    """How many numbers the tensors in a safetensors file hold, from its header alone.

    Opening the file compares its size with its header, which finds a truncated file. It maps the file into memory and reads
    none of the tensors.

    Raises:
        CorruptFile: the file is truncated, or its header is invalid.
        MemoryError: a limit on the process's address space forbids mapping the file.
    """
    # Imported here, so that a missing package is reported as one when the model loads.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.offset_keys())
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise errors.CorruptFile(
            f"{file} is truncated or corrupt ({file.stat().st_size} bytes; safetensors reports: {reason}): {AGAIN}"
        ) from error


def _variant(transformer: Mapping[str, Any]) -> Variant:
    """The variant, from the keys `is_turbo` and `model_version` that diffusers' converter writes into the transformer's config."""
    version = str(transformer.get("model_version") or "").lower()
    if transformer.get("is_turbo") or "turbo" in version:
        return "turbo"
    return "sft" if "sft" in version else "base"

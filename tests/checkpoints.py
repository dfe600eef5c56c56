"""Copies of the embedded checkpoint, changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def changed(checkpoint: Path, folder: Path, part: str, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """A copy of the checkpoint in which `change` was applied to the tensors of one component."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, folder)
    [file] = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def enlarged(checkpoint: Path, folder: Path, megabytes: int) -> Path:
    """A copy that is larger and as fast: its text encoder knows more words than anybody will use."""
    tokens = megabytes * 1_000_000 // (64 * 4)
    words = np.random.default_rng(0).standard_normal((tokens, 64), dtype=np.float32) / 50
    changed(checkpoint, folder, "text_encoder", lambda tensors: tensors.update({"embed_tokens.weight": words}))
    edit(folder / "text_encoder" / "config.json", {"vocab_size": tokens})
    return folder


def edit(file: Path, changes: dict[str, Any]) -> None:
    """Overwrites some keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))

"""Adapters: no trace in the next song, and no growth of memory when many are used in turn."""

import gc
from pathlib import Path
from typing import Any, Final

import numpy as np
import peft
import psutil
from diffusers import AceStepTransformer1DModel

from benchmarks.markdown import table
from benchmarks.player import Player
from serve_app.config import AdapterArgs
from tests.support.adapters import ATTENTION, peft_folder

COUNT: Final = 20
MEMORY_MB: Final = 20
"""How many MB of adapters the worker keeps: fewer than there are."""
_CYCLES: Final = 3
_RANK: Final = 64
_SONG: Final[dict[str, Any]] = {"prompt": "solo piano, calm", "duration": 5, "seed": 1}


def made_adapters(checkpoint: Path, folder: Path) -> dict[str, AdapterArgs]:
    """COUNT random LoRAs of a checkpoint's transformer, as PEFT saves them, by name."""
    transformer = AceStepTransformer1DModel.from_pretrained(checkpoint / "transformer")
    config = peft.LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=ATTENTION)
    names = [f"lora-{number}" for number in range(COUNT)]
    for seed, name in enumerate(names):
        peft_folder(transformer, folder / name, config, seed)
    return {name: AdapterArgs(source=str(folder / name), scale=0.1) for name in names}


def traces(player: Player) -> str:
    """A table: how far songs with one seed are from the first of them, which had no adapter."""
    name = "lora-0"
    uses = {"none": None, "scale 1": [{"name": name, "scale": 1.0}], "scale 0": [{"name": name, "scale": 0.0}]}
    first = player.make(**_SONG).song
    rows = []
    for words in ("scale 1", "none", "scale 0", "none"):
        fields = {} if uses[words] is None else {"lora": uses[words]}
        song = player.make(**_SONG, **fields).song
        rows.append([words, "equal" if np.array_equal(song, first) else f"{np.abs(song - first).max():.3f}"])
    return table(["adapter", "largest difference from the first song"], rows)


def cycles(player: Player, folder: Path) -> str:
    """A table: the process's memory after each cycle through all adapters."""
    size = sum(file.stat().st_size for file in folder.rglob("adapter_model.safetensors"))
    rows = []
    for cycle in range(1, _CYCLES + 1):
        for number in range(COUNT):
            player.make(prompt="x", duration=1, steps=1, seed=1, lora=f"lora-{number}")
        gc.collect()
        rows.append([cycle, f"{psutil.Process().memory_info().rss / 1e6:.0f} MB"])
    note = f"{COUNT} adapters of {size / COUNT / 1e6:.1f} MB; the worker may keep {MEMORY_MB} MB of them."
    return f"{table(['cycle', 'resident memory of the service'], rows)}\n\n{note}"

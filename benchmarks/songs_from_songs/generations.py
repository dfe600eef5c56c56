"""What a song loses when it is extended again and again: from its kept latents, or from a file that is uploaded each time."""

from typing import Any, Final

import numpy as np
import torch

from benchmarks.markdown import table
from benchmarks.measured_engine import MeasuredEngine
from benchmarks.player import Made, Player
from benchmarks.sound import decibels, fidelity_db

TIMES: Final = 5
_SEEDS: Final = (1, 2, 3, 4)
_LONGER_S: Final = 2
_SONG: Final[dict[str, Any]] = {"prompt": "piano with drums and bass", "bpm": 120, "keyscale": "D major"}
_RAMP_FRAMES: Final = 25
"""As many latents at the end of the old part may pass into the new one."""


def generations(player: Player, engine: MeasuredEngine) -> str:
    """A table by way and format: how far the first song's part is from what it was, after TIMES extensions.

    The file is what a client gets. The latents are what the model hears of it, and their decoding is what a client would get if
    Sophia did not put the source's own samples in their place.
    """
    rows = [_extended(player, engine, route, format) for format in ("wav", "mp3") for route in ("job", "upload")]
    rows.append(_round_trips(player, engine))
    heads = ["way", "format", "file", "latents", "decoded latents"]
    return table(heads, rows)


def _extended(player: Player, engine: MeasuredEngine, route: str, format: str) -> list[str]:
    losses = []
    for seed in _SEEDS:
        first = player.make(**_SONG, duration=8, seed=seed, format=format)
        began = engine.latents[0]
        last = first
        for time in range(1, TIMES + 1):
            source = last.name if route == "job" else player.upload_file(last.files[0])
            task = {"task_type": "repaint", "source": source, "extend_after": _LONGER_S}
            last = player.make(**_SONG, **task, seed=seed + 100 * time, format=format)
        losses.append([_of_files(last, first), *_of_latents(engine, engine.latents[0], began)])
    way = f"extended {TIMES} times from {'`job:…`' if route == 'job' else 'the uploaded file'}"
    return [way, format, *_shown(losses)]


def _round_trips(player: Player, engine: MeasuredEngine) -> list[str]:
    """The same song decoded and encoded TIMES times, and nothing else."""
    losses = []
    for seed in _SEEDS:
        first = player.make(**_SONG, duration=8, seed=seed)
        began = engine.latents[0]
        latents = began
        for _ in range(TIMES):
            song = engine.decoded(latents)
            latents = engine.encoded(song)
        losses.append([float("nan"), *_of_latents(engine, latents, began)])
        assert first.song.shape == song.shape
    return [f"decoded and encoded {TIMES} times", "none", *_shown(losses)]


def _of_files(last: Made, first: Made) -> float:
    kept = first.song.shape[1]
    return fidelity_db(last.song[:, :kept], first.song)


def _of_latents(engine: MeasuredEngine, latents: torch.Tensor, began: torch.Tensor) -> list[float]:
    """The fidelity of the first song's latents, and of what is decoded from them, at the same level, in dB."""
    kept = began[:-_RAMP_FRAMES]
    copy = latents[: len(kept)]
    error = (copy - kept).square().mean().item()
    ratio = float("inf") if error == 0 else decibels(kept.square().mean().item() / error)
    heard = engine.decoded(copy)
    expected = engine.decoded(kept)
    level = float((heard * expected).sum() / np.square(heard).sum())
    return [ratio, fidelity_db(level * heard, expected)]


def _shown(losses: list[list[float]]) -> list[str]:
    return [_decibels(column) for column in np.array(losses).T]


def _decibels(values: np.ndarray) -> str:
    if np.isnan(values).all():
        return ""
    if np.isinf(values).all():
        return "no loss: equal"
    return f"{values[np.isfinite(values)].mean():.1f} dB"

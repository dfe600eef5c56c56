"""Engines that fail as real ones do or lack nothing that a test needs, and a short song from the real one."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from serve_app.audio import Song
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.protocol import NO_INPUTS, EngineFacts, SongInputs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.music import MusicRequest
from serve_app.weights.layout import LYRIC_HEADS
from tests.support.checkpoints import edit


class BrokenDevice(SimulatedEngine):
    """Fails each song at once, like a card that has failed."""

    def __init__(self, name: str, args: ModelArgs, error: Exception) -> None:
        super().__init__(name, args)
        self._error = error

    def generate(
        self,
        request: MusicRequest,
        on_step: Callable[[str, int, int], None],
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        raise self._error


class EncodingEngine(AceStepEngine):
    """An engine for the random checkpoint, whose VAE gives 4 channels when it encodes. Here an untrained last layer gives 64."""

    def load(self, report: Callable[[str, float | None, str], None]) -> EngineFacts:
        facts = super().load(report)
        encoder = self._pipe.vae.encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder.conv2 = torch.nn.Conv1d(encoder.conv2.in_channels, 2 * 64, kernel_size=3, padding=1)
        return facts


class AligningToy(AceStepEngine):
    """The toy model with all of its heads named in its config and with sharp cross-attention.

    The packaged toy model names none, because none of its heads follows the lyrics: the times that are found here mean nothing.
    """

    def load(self, report: Callable[[str, float | None, str], None]) -> EngineFacts:
        facts = super().load(report)
        transformer = self._pipe.transformer
        transformer.register_to_config(**{LYRIC_HEADS: dict.fromkeys(range(6), (0, 1, 2, 3))})
        with torch.no_grad():
            for layer in transformer.layers:
                layer.cross_attn.norm_q.weight.mul_(8)
        return replace(facts, aligns_lyrics=True)


def base_engine(checkpoint: Path, folder: Path) -> EncodingEngine:
    """An engine, not loaded yet, for a copy in `folder` of the random checkpoint that says that it is a base model's."""
    copy = Path(shutil.copytree(checkpoint, folder / "checkpoint"))
    edit(copy / "transformer" / "config.json", {"is_turbo": False, "model_version": "base"})
    return EncodingEngine("base", ModelArgs(source=str(copy), device="cpu"), folder)


def generate(
    engine: AceStepEngine,
    on_step: Callable[[str, int, int], None] = lambda stage, step, steps: None,
    stopped: Callable[[], bool] = lambda: False,
    **fields: Any,
) -> list[Song]:
    """Generate one second of piano in two steps with seed 7. `fields` override these."""
    request = MusicRequest.model_validate({"prompt": "piano", "duration": 1.0, "steps": 2, "seed": 7} | fields)
    return list(engine.generate(request, on_step, stopped))

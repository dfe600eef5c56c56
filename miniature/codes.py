"""Trains the audio tokenizer and detokenizer: one of 64,000 codes stands for five latents, 0.2 s of music.

A code's 16 bits cannot hold a waveform. What they should keep is what a cover follows: which pitches sound, how loud, and the
energies of the upper bands. So the loss compares the power of each spectral line over a code's five latents, as well as
the latents themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualFSQ

from miniature import loop, stage
from miniature.batches import Coder
from miniature.mdct_start import projection
from miniature.mixing import LINEAR, Latents, silence
from miniature.optimizers import Optimizers
from miniature.tasks import AUDIBLE, HELD_OUT, Clips

WINDOW = 5
LEVELS = [8, 8, 8, 5, 5, 5]
WIDTH = 128
_SHAPE: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_attention_pooler_hidden_layers": 2,
    "audio_acoustic_hidden_dim": 64,
    "pool_window_size": WINDOW,
}
BATCH = 16
CROP_CODES = 50
MIX_SHARE = 0.5  # of the crops; the others are of single tracks, as covers of stems need
SPECTRUM_WEIGHT = 0.5
POWER_FLOOR = 0.03
"""Added to a line's power before the logarithm: a tenth of the mean power of a line below 600 Hz."""


class Codes(nn.Module):
    """Tokenizer and detokenizer. In training, vector_quantize_pytorch quantizes: diffusers' quantizer has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: Any = AceStepAudioTokenizer(
            **_SHAPE, fsq_dim=WIDTH, fsq_input_levels=LEVELS, fsq_input_num_quantizers=1
        )
        self.tokenizer.quantizer = ResidualFSQ(dim=WIDTH, levels=LEVELS, num_quantizers=1)
        self.detokenizer: Any = AceStepAudioTokenDetokenizer(**_SHAPE)

    @classmethod
    def load(cls, checkpoint: Path) -> "Codes | None":
        """The networks of a saved pipeline's folder, or None if it has none, or of another shape."""
        if not (checkpoint / "audio_tokenizer").exists():
            return None
        tokenizer = AceStepAudioTokenizer.from_pretrained(checkpoint / "audio_tokenizer", dtype=torch.float32)
        detokenizer = AceStepAudioTokenDetokenizer.from_pretrained(
            checkpoint / "audio_token_detokenizer", dtype=torch.float32
        )
        if any(tokenizer.config[name] != size for name, size in _SHAPE.items()):
            return None
        codes = cls()
        codes.tokenizer.load_state_dict(tokenizer.state_dict())
        codes.detokenizer.load_state_dict(detokenizer.state_dict())
        return codes

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (batch, 5 n, 64) → what their codes stand for, of the same shape, and the codes (batch, n, 1)."""
        quantized, codes = self.tokenizer.tokenize(latents)
        restored: Tensor = self.detokenizer(quantized)
        return restored, codes


def for_pipeline(codes: Codes) -> tuple[Any, Any]:
    """The tokenizer and the detokenizer as diffusers' pipeline has them."""
    tokenizer = AceStepAudioTokenizer.from_config(codes.tokenizer.config)
    tokenizer.load_state_dict(codes.tokenizer.state_dict())
    return tokenizer.eval(), codes.detokenizer.eval()


def code_losses(restored: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The mean squared error of latents (batch, 5 n, 64), and the mean distance of their spectra's logarithms."""
    distance = (line_levels(restored) - line_levels(wanted)).abs().mean()
    return (restored - wanted).square().mean(), distance


def line_levels(latents: Tensor) -> Tensor:
    """The logarithm of each spectral line's amplitude over a code's five latents: (batch, n, 96)."""
    lines = latents[..., :LINEAR] @ _lines()
    power = lines.square().reshape(len(lines), -1, WINDOW, lines.shape[-1]).mean(2)
    levels: Tensor = 0.5 * (power + POWER_FLOOR).log()
    return levels


@cache
def _lines() -> Tensor:
    """From a latent's first 54 numbers to the MDCT's lines: (54, 96)."""
    return torch.from_numpy(np.linalg.pinv(projection()).astype(np.float32))


class Training:
    """The networks, their optimizers and average; the step says what data comes next."""

    def __init__(self, file: Path, start: Codes | None = None) -> None:
        self._file = file
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.codes = start or Codes()
        self._optimizers = Optimizers(self.codes)
        self.steps = 0

    @property
    def average(self) -> Codes:
        """The networks with averaged weights."""
        codes: Any = self._optimizers.average
        average: Codes = codes.eval()
        return average

    def resume(self) -> bool:
        """Goes on from the saved state, if there is one."""
        state = stage.load_state(self._file)
        if state is None:
            return False
        self.codes.load_state_dict(state["codes"])
        self._optimizers.restore(state["optimizers"])
        self.steps = state["steps"]
        return True

    def save(self) -> None:
        state = {"codes": self.codes.state_dict(), "optimizers": self._optimizers.state(), "steps": self.steps}
        stage.save_state(state, self._file)

    def step(self, latents: Tensor, rate: float) -> Mapping[str, float]:
        """One step, with the full learning rates times `rate`; returns the losses."""
        self.codes.train()
        restored, codes = self.codes(latents)
        error, distance = code_losses(restored, latents)
        with self._optimizers.paced(rate, self.steps):
            self._optimizers.step(error + SPECTRUM_WEIGHT * distance)
        self.steps += 1
        return {
            "error": float(error.detach()),
            "spectra": float(distance.detach()),
            "codes in a batch": float(codes.unique().numel()),
        }


def draw_batch(clips: Clips, step: int) -> Tensor:
    """The crops of a step, (BATCH, 5 * CROP_CODES, 64), from clips that are not held out: always the same for a step."""
    random = np.random.default_rng([13, step])
    return torch.from_numpy(np.stack([_draw(clips, random) for _ in range(BATCH)]))


def _draw(clips: Clips, random: np.random.Generator) -> Latents:
    clip = int(random.integers(len(clips.facts) - HELD_OUT))
    frames = WINDOW * CROP_CODES
    start = int(random.integers(clips.mix.shape[1] - frames + 1))
    part = slice(start, start + frames)
    mix: Latents = clips.mix[clip, part].astype(np.float32)
    if random.random() < MIX_SHARE:
        return mix
    stems = [stem[clip, part].astype(np.float32) for stem in clips.stems.values()]
    audible = [stem for stem in stems if np.abs(stem - silence(1)).max() > AUDIBLE]
    return audible[int(random.integers(len(audible)))] if audible else mix


def state_file(work: Path) -> Path:
    """Where the training's state is in the folder of all stages' states."""
    return work / "codes.pt"


def train(work: Path, clips: Clips, session: stage.Session, checkpoint: Path | None = None) -> int:
    """Trains for the session's time; saves the state and returns the step reached.

    It goes on from a saved state; else from the codes of the pipeline in `checkpoint`, if it has them; else anew.
    """
    training = Training(state_file(work), Codes.load(checkpoint) if checkpoint else None)
    if training.resume():
        print(f"going on from step {training.steps} of {state_file(work)}", flush=True)
    loop.run(training, lambda rate: training.step(draw_batch(clips, training.steps), rate), session)
    print(held_out(training.average, clips).line(), flush=True)
    return training.steps


@dataclass(frozen=True)
class HeldOut:
    """What codes lose of the held-out clips: mean squared error, distance of the spectra, and how many codes occur."""

    error: float
    distance: float
    codes: int
    of: int

    def line(self) -> str:
        return f"held-out clips: error {self.error:.4f}  spectra {self.distance:.4f}  {self.codes} codes of {self.of}"


@torch.no_grad()
def held_out(codes: Codes, clips: Clips) -> HeldOut:
    """Sends the held-out clips through the codes."""
    frames = clips.mix.shape[1] // WINDOW * WINDOW
    latents = torch.from_numpy(np.asarray(clips.mix[-HELD_OUT:, :frames], np.float32))
    restored, indices = codes(latents)
    error, distance = code_losses(restored, latents)
    return HeldOut(float(error), float(distance), indices.unique().numel(), indices.numel())


def trained(work: Path) -> Codes | None:
    """The networks with the averaged weights of their training, or None if it has no state."""
    training = Training(state_file(work))
    return training.average if training.resume() else None


def coder(codes: Codes) -> Coder:
    """Sends latents (songs, frames, 64) through the codes, as the pipeline sends a cover's source."""

    @torch.no_grad()
    def through(latents: Tensor) -> Tensor:
        frames = latents.shape[1]
        padding = torch.from_numpy(silence(-frames % WINDOW)).to(latents.device).expand(len(latents), -1, -1)
        restored, _ = codes(torch.cat([latents, padding], 1))
        heard: Tensor = restored[:, :frames]
        return heard

    return through

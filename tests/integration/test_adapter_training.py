"""A LoRA that PEFT trains on the embedded checkpoint plays in Sophia as it does in PEFT."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from serve_app.config import AdapterArgs, ModelArgs
from serve_app.engine.ace_step.conditioning import open_slots
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.sampling import Told
from serve_app.engine.ace_step.settings import sampling_settings
from serve_app.engine.ace_step.sources import reference_latents
from serve_app.engine.ace_step.tasks import canvas
from serve_app.engine.protocol import NO_INPUTS
from serve_app.music import MusicRequest
from tests.support.adapters import ATTENTION, rename_as_original
from tests.support.checkpoints import edit

STEPS = 12
LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)
"""The noise levels at which losses are compared."""


@pytest.mark.long
def test_a_trained_lora_reaches_the_loss_that_peft_gives(cache: Path, tmp_path: Path) -> None:
    """The flow-matching loss of the trained adapter is PEFT's; without it, or with alpha taken as r, it is another."""
    model = ModelArgs(source="embedded", device="cpu", adapters={"piano": AdapterArgs(source=str(tmp_path))})
    engine = AceStepEngine("m", model, cache)
    engine.load(lambda *progress: None)
    transformer = engine._pipe.transformer
    music = played(engine, MusicRequest(prompt="solo piano, calm", duration=6, seed=1, bpm=90))
    told = told_of(engine, MusicRequest(prompt="drums and bass, fast", duration=6, seed=1, bpm=160))
    plain = loss(transformer, told, music)

    adapted = peft.get_peft_model(transformer, peft.LoraConfig(r=8, lora_alpha=32, target_modules=ATTENTION))
    train(adapted, told, music)
    trained = loss(adapted, told, music)
    adapted.save_pretrained(tmp_path)
    adapted.unload()
    rename_as_original(tmp_path)
    ours = loss_with(engine, told, music)
    edit(tmp_path / "adapter_config.json", {"lora_alpha": 8})
    engine.load(lambda *progress: None)
    weaker = loss_with(engine, told, music)

    print(f"loss without {plain:.4f}, in PEFT {trained:.4f}, here {ours:.4f}, here with alpha = r {weaker:.4f}")
    assert trained < 0.9 * plain
    assert ours == pytest.approx(trained, rel=1e-4)
    assert abs(weaker - trained) > 0.05 * trained


def played(engine: AceStepEngine, request: MusicRequest) -> Tensor:
    """The latents of a song, of shape (1, frames, 64)."""
    [song] = engine.generate(request, lambda *step: None, lambda: False)
    assert song.latents is not None
    return torch.from_numpy(song.latents)[None]


def told_of(engine: AceStepEngine, request: MusicRequest) -> Told:
    """What the transformer is told about a song, as tensors that training can use."""
    with torch.inference_mode():
        made_on = canvas(engine._pipe, request, None, NO_INPUTS, "explicit")
        reference = reference_latents(engine._pipe, None, seed=0)
        [slot] = open_slots(engine._pipe, request, sampling_settings(request, "turbo"), made_on, reference)
    return Told(slot.told.conditions.clone(), slot.told.context.clone())


def losses(transformer: Any, told: Told, music: Tensor, levels: Tensor, seed: int) -> Tensor:
    """Squared errors of the velocity noise - music at each of `levels`, with the noise of a seed."""
    noise = torch.randn(len(levels), *music.shape[1:], generator=torch.Generator().manual_seed(seed))
    level = levels[:, None, None]
    [velocity] = transformer(
        hidden_states=(1 - level) * music + level * noise,
        timestep=levels,
        timestep_r=levels,
        encoder_hidden_states=told.conditions.expand(len(levels), -1, -1),
        context_latents=told.context.expand(len(levels), -1, -1),
        return_dict=False,
    )
    error: Tensor = (velocity - (noise - music)).square().mean((1, 2))
    return error


def train(transformer: Any, told: Told, music: Tensor) -> None:
    """Some steps of Adam with random levels and noise, in one thread: on a busy machine two threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([weight for weight in transformer.parameters() if weight.requires_grad], lr=2e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        error = losses(transformer, told, music, torch.rand(2, generator=generator), step).mean()
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    transformer.eval()
    torch.set_num_threads(threads)


def loss(transformer: Any, told: Told, music: Tensor) -> float:
    """The mean loss over LEVELS, with noise that training has not seen."""
    with torch.no_grad():
        return losses(transformer, told, music, torch.tensor(LEVELS), seed=10_000).mean().item()


def loss_with(engine: AceStepEngine, told: Told, music: Tensor) -> float:
    """The loss with the engine's adapter."""
    blend = engine._adapters.blend({"piano": 1.0})
    with blend.applied(engine._pipe.transformer):
        return loss(engine._pipe.transformer, told, music)

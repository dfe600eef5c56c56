"""Flow edit: a song turned into another one by its words, beside the original's loop written out plainly."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from pydantic import ValidationError

from miniature.listening import sound_scores
from miniature.measures import pitch_classes
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.conditioning import open_slots
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.sampling import Slot, Told, advance
from serve_app.engine.ace_step.settings import ignored_settings, sampling_settings
from serve_app.engine.ace_step.sources import encoded, reference_latents, silence
from serve_app.engine.ace_step.tasks import canvas
from serve_app.engine.ace_step.work import work_of
from serve_app.engine.protocol import SongInputs
from serve_app.errors import InvalidRequest, Stopped
from serve_app.music import MusicRequest

STEPS = 8


@pytest.fixture(scope="module")
def source() -> npt.NDArray[np.float32]:
    """Six seconds of quiet noise in stereo."""
    return 0.1 * np.random.default_rng(1).standard_normal((6 * 48_000, 2)).astype(np.float32)


def edit(**fields: Any) -> MusicRequest:
    given = {"prompt": "violin", "source_prompt": "piano", "steps": STEPS, "seed": 7, "guidance_scale": 1.0, **fields}
    return MusicRequest.model_validate({**given, "task_type": "edit", "source": f"input:{'0' * 64}"})


def slot_of(engine: AceStepEngine, request: MusicRequest, source: npt.NDArray[np.float32]) -> Slot:
    work = work_of(request, SongInputs(source=source), "base")
    with torch.inference_mode():
        made_on = canvas(engine._pipe, work.request, work.plan, work.inputs, "auto")
        reference = reference_latents(engine._pipe, None, seed=0)
        [slot] = open_slots(engine._pipe, work.request, sampling_settings(request, "base"), made_on, reference)
    return slot


def edited(engine: AceStepEngine, request: MusicRequest, source: npt.NDArray[np.float32]) -> torch.Tensor:
    slot = slot_of(engine, request, source)
    with torch.inference_mode():
        while not slot.finished:
            advance(engine._pipe.transformer, [slot])
    return slot.result


def velocity(
    pipe: Any, told: Told, latents: torch.Tensor, level: float, scale: float, momentum: MomentumBuffer
) -> torch.Tensor:
    """What the transformer answers about one song, with adaptive projected guidance if `scale` is above 1."""

    def asked(conditions: torch.Tensor) -> torch.Tensor:
        level_of_row = torch.tensor([level])
        answer: torch.Tensor = pipe.transformer(
            hidden_states=latents,
            timestep=level_of_row,
            timestep_r=level_of_row,
            encoder_hidden_states=conditions,
            context_latents=told.context,
            return_dict=False,
        )[0]
        return answer

    conditional = asked(told.conditions)
    if scale == 1.0:
        return conditional
    unconditional = asked(pipe.condition_encoder.null_condition_emb.expand_as(told.conditions))
    guided: torch.Tensor = normalized_guidance(
        conditional, unconditional, scale - 1.0, momentum, 0.0, 2.5, use_original_formulation=True, norm_dim=1
    )
    return guided


def reference_edit(
    pipe: Any, slot: Slot, x: torch.Tensor, first: int, last: int, draws: int, scale: float
) -> torch.Tensor:
    """The song that the original's loop makes of the source `x`, editing the steps `first` to `last`."""
    assert slot.edit is not None
    random = torch.Generator().manual_seed(7)
    torch.randn(x.shape, generator=random)  # what ordinary sampling would start from
    levels = [*torch.linspace(1, 0, STEPS + 1).tolist()]
    of_source = MomentumBuffer(-0.75)
    of_song = MomentumBuffer(-0.75)
    song = x
    for step in range(first, STEPS):
        level = levels[step]
        width = levels[step + 1] - level
        if step >= last:
            if step == last:
                song = song + level * (torch.randn(x.shape, generator=random) - x)
            song = song + width * velocity(pipe, slot.told, song, level, scale, of_song)
            continue
        before = (of_source.running_average, of_song.running_average)
        after = []
        delta = torch.zeros_like(x)
        for _ in range(draws):
            of_source.running_average, of_song.running_average = before
            noisy = (1 - level) * x + level * torch.randn(x.shape, generator=random)
            delta += velocity(pipe, slot.told, song + noisy - x, level, scale, of_song) / draws
            delta -= velocity(pipe, slot.edit.counterpart.told, noisy, level, scale, of_source) / draws
            after.append((of_source.running_average, of_song.running_average))
        of_source.running_average = sum(momentum for momentum, _ in after) / draws
        of_song.running_average = sum(momentum for _, momentum in after) / draws
        song = song + width * delta
    return song


@pytest.mark.parametrize(
    ("fields", "first", "last", "draws", "scale"),
    [
        pytest.param({}, 0, STEPS, 1, 1.0, marks=pytest.mark.long),
        pytest.param({"edit_start": 0.25, "edit_end": 0.75}, 2, 6, 1, 4.0, marks=pytest.mark.long),
        ({"edit_start": 0.3, "edit_end": 0.5, "edit_draws": 3}, 2, 4, 3, 4.0),
    ],
    ids=["whole", "part", "draws"],
)
def test_an_edit_is_the_originals(
    base: AceStepEngine,
    source: npt.NDArray[np.float32],
    fields: dict[str, Any],
    first: int,
    last: int,
    draws: int,
    scale: float,
) -> None:
    """Latent for latent, with and without guidance, for all steps and for some, with one draw and several."""
    request = edit(guidance_scale=scale, **fields)
    song = edited(base, request, source)

    with torch.inference_mode():
        x = encoded(base._pipe, source)
        expected = reference_edit(base._pipe, slot_of(base, request, source), x, first, last, draws, scale)

    torch.testing.assert_close(song, expected, atol=1e-5, rtol=1e-4)
    assert (song - x).abs().mean() > 1e-3


@pytest.mark.long
def test_a_piano_becomes_a_flute_that_plays_its_notes(tmp_path: Path) -> None:
    """With the packaged base model: less piano is heard, more flute, and nearly the same pitch classes."""
    engine = AceStepEngine("base", ModelArgs(source="embedded-base", device="cpu"), tmp_path)
    engine.load(lambda phase, fraction, detail: None)
    fields = {"duration": 6.0, "steps": 20, "keyscale": "C major", "bpm": 100, "guidance_scale": 7.0}
    [piano] = engine.generate(
        MusicRequest.model_validate({"prompt": "piano", "seed": 2, **fields}), lambda *step: None, lambda: False
    )
    request = edit(prompt="flute", seed=52, edit_end=0.6, **fields)
    inputs = SongInputs(source=piano.samples, source_latents=piano.latents)

    [flute] = engine.generate(request, lambda *step: None, lambda: False, inputs)

    before = sound_scores(piano.samples.T)
    after = sound_scores(flute.samples.T)
    likeness = np.corrcoef(pitch_classes(piano.samples.T), pitch_classes(flute.samples.T))[0, 1]
    print(
        f"piano {before['piano']:.2f} -> {after['piano']:.2f}, flute {before['flute']:.2f} -> {after['flute']:.2f}, "
        f"pitch classes {likeness:.2f}"
    )
    assert after["piano"] < before["piano"] - 0.5
    assert after["flute"] > before["flute"] + 0.3
    assert likeness > 0.8


def test_without_new_words_the_source_comes_back(base: AceStepEngine, source: npt.NDArray[np.float32]) -> None:
    """The source's words and the song's are the same, so there is no difference to follow."""
    song = edited(base, edit(prompt="piano", source_lyrics="", edit_draws=2, guidance_scale=4.0), source)

    with torch.inference_mode():
        torch.testing.assert_close(song, encoded(base._pipe, source), atol=1e-5, rtol=0)


def test_words_that_are_left_out_are_the_songs(base: AceStepEngine, source: npt.NDArray[np.float32]) -> None:
    """Only the lyrics change if only the source's lyrics are given; the model does not hear the source."""
    slot = slot_of(base, edit(source_prompt=None, source_lyrics="la la"), source)
    same = slot_of(base, edit(source_prompt="violin", source_lyrics="la la"), source)

    assert slot.edit is not None
    assert same.edit is not None
    assert torch.equal(slot.edit.counterpart.told.conditions, same.edit.counterpart.told.conditions)
    assert not torch.equal(slot.edit.counterpart.told.conditions, slot.told.conditions)
    assert torch.equal(slot.told.context[..., :64], silence(base._pipe, 150))


def test_an_edit_warns_of_settings_that_it_ignores() -> None:
    """Heun, DCW and angle-based guidance are not used, as in the original; a retake has no noise to mix."""
    request = edit(sampler="heun", dcw=True, guidance_mode="adg", retake_variance=0.5)

    settings = sampling_settings(request, "base")

    assert (settings.sampler, settings.dcw_mode, settings.guidance_mode) == ("euler", None, "apg")
    assert [warning.split()[0] for warning in ignored_settings(request, "base")] == [
        "sampler", "dcw", "retake_variance", "guidance_mode",
    ]  # fmt: skip


def test_turbo_models_do_not_edit(source: npt.NDArray[np.float32]) -> None:
    """Base and sft models do."""
    with pytest.raises(InvalidRequest, match="'edit', which turbo models cannot do"):
        work_of(edit(), SongInputs(source=source), "turbo")
    assert work_of(edit(), SongInputs(source=source), "sft").request.duration == 6.0


def test_each_draw_counts_as_a_song() -> None:
    """In limits and costs; and so their number is limited together with that of variations and candidates."""
    assert edit(edit_draws=4, variations=2).played_songs == 8
    for fields in ({"edit_draws": 5, "variations": 2}, {"edit_draws": 3, "best_of": 3, "lyrics": "la la"}):
        with pytest.raises(ValidationError, match="must be at most 8"):
            edit(**fields)


def test_an_edit_can_be_stopped_between_two_draws(base: AceStepEngine, source: npt.NDArray[np.float32]) -> None:
    """A step of eight draws takes as long as eight steps."""
    slot = slot_of(base, edit(edit_draws=8), source)
    passes: list[int] = []

    def stop_at_the_third() -> None:
        passes.append(len(passes))
        if len(passes) == 3:
            raise Stopped

    with torch.inference_mode(), pytest.raises(Stopped):
        advance(base._pipe.transformer, [slot], stop_at_the_third)

    assert slot.step == 0

"""The sampling loop beside diffusers' own pipeline, and songs that share a pass of the transformer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.config import ModelArgs, Variant
from serve_app.engine.ace_step.conditioning import open_slots
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.generating import lyrics_and_language, metadata, seeds, song_frames
from serve_app.engine.ace_step.sampling import Slot, advance
from serve_app.engine.ace_step.settings import sampling_settings
from serve_app.engine.ace_step.sources import reference_latents
from serve_app.engine.ace_step.tasks import canvas
from serve_app.engine.ace_step.work import Work
from serve_app.engine.protocol import NO_INPUTS
from serve_app.music import MusicRequest

ROUNDING = 1e-5
"""How far latents of size 1 may differ where the same rows are multiplied in a batch of another size. Measured: under 1e-6."""
LYRICS = "[verse]\nhello, hello"

any_model = pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lyrics": LYRICS, "vocal_language": "de", "bpm": 92, "keyscale": "C major", "timesignature": "3"},
        {"variations": 3, "lyrics": LYRICS},
        {"variations": 3, "duration": 8.2, "steps": 3, "shift": 1.0},
        {"shift": 2.0, "steps": 1},
    ],
    ids=str,
)
guided_model = pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.0},
        {"guidance_scale": 3.0, "cfg_interval_start": 0.4, "cfg_interval_end": 0.9, "shift": 3.0},
        {"guidance_scale": 3.0, "cfg_interval_end": 0.5, "variations": 3, "lyrics": LYRICS},
        {"guidance_scale": 3.0, "cfg_interval_start": 0.5, "variations": 3, "shift": 2.0},
    ],
    ids=str,
)


@pytest.fixture(scope="module")
def embedded(cache: Path) -> AceStepEngine:
    """An engine with the embedded checkpoint, a turbo model."""
    return _loaded("embedded", cache)


@any_model
def test_a_turbo_model_samples_as_the_pipeline_does(fields: dict[str, Any], engine: AceStepEngine) -> None:
    """The latents of a request are those of AceStepPipeline, bit for bit, with the turbo model's random weights."""
    request = _request(**fields)

    latents = _denoised(engine, request)

    assert torch.equal(latents, _pipeline_latents(engine, request))


@any_model
def test_the_embedded_model_samples_as_the_pipeline_does(fields: dict[str, Any], embedded: AceStepEngine) -> None:
    """The latents of a request are those of AceStepPipeline, bit for bit, with the trained weights that come with Sophia."""
    request = _request(**fields)

    latents = _denoised(embedded, request)

    assert torch.equal(latents, _pipeline_latents(embedded, request))


@guided_model
def test_a_base_model_samples_as_the_pipeline_does(fields: dict[str, Any], base: AceStepEngine) -> None:
    """The latents of a request are those of AceStepPipeline, bit for bit, with and without guidance in any interval."""
    request = _request(**fields)

    latents = _denoised(base, request)

    assert torch.equal(latents, _pipeline_latents(base, request))


def test_guidance_changes_the_latents_where_its_interval_allows(base: AceStepEngine) -> None:
    """Guidance over all steps, over the early half, over the late half and over none give four different songs."""
    intervals = [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.6, 0.4)]

    songs = [
        _sampled(base, _request(guidance_scale=5.0, cfg_interval_start=start, cfg_interval_end=end))
        for start, end in intervals
    ]

    apart = [(one - other).abs().max().item() for i, one in enumerate(songs) for other in songs[:i]]
    assert min(apart) > 100 * ROUNDING
    assert torch.equal(songs[3], _sampled(base, _request(guidance_scale=1.0)))


@pytest.mark.parametrize("task", ["repaint", "lego", "cover", "extract", "complete"])
def test_a_task_with_a_source_samples_as_the_pipeline_does(task: str, base: AceStepEngine) -> None:
    """Given the context of a task's source, the loop gives the pipeline's latents, bit for bit."""
    request = _request(duration=6.0, variations=2, guidance_scale=3.0).model_copy(update={"task_type": task})
    source = _audio(6.0)
    window = {"repainting_start": 0.8, "repainting_end": 1.6}
    torch.manual_seed(0)  # the VAE draws from the distribution of the source's latents
    expected = _pipeline_latents(base, request, src_audio=source, **window)

    torch.manual_seed(0)
    context = _source_context(base._pipe, task, source, window)

    assert torch.equal(_sampled(base, request, context), expected)
    assert not torch.equal(expected, _sampled(base, request))


def test_reference_audio_samples_as_the_pipeline_does(base: AceStepEngine) -> None:
    """Given the latents of a reference, the loop gives the pipeline's latents, bit for bit."""
    request = _request(variations=2, guidance_scale=3.0)
    audio = _audio(4.0)
    torch.manual_seed(0)
    expected = _pipeline_latents(base, request, reference_audio=audio)

    torch.manual_seed(0)
    reference, _ = base._pipe.prepare_reference_audio_latents(audio, 1, base._pipe.device, torch.float32)

    assert torch.equal(_sampled(base, request, reference=reference), expected)
    assert not torch.equal(expected, _sampled(base, request))


def test_a_retake_mixes_the_noise_of_two_seeds(engine: AceStepEngine) -> None:
    """A retake starts from cos * noise of `seed` + sin * noise of `retake_seed`, each seed counted up by variation."""
    noise = {seed: slot.latents for seed in (7, 8, 20, 21) for slot in _slots(engine, _request(seed=seed))}

    retakes = _slots(engine, _request(seed=7, variations=2, retake_seed=20, retake_variance=0.3))
    other = _slots(engine, _request(seed=7, retake_seed=20, retake_variance=1.0))

    for retake, first, second in zip(retakes, (7, 8), (20, 21), strict=True):
        expected = np.cos(0.15 * np.pi) * noise[first] + np.sin(0.15 * np.pi) * noise[second]
        torch.testing.assert_close(retake.latents, expected, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(other[0].latents, noise[20], atol=ROUNDING, rtol=0)


def test_a_short_song_is_sampled_in_128_frames(engine: AceStepEngine) -> None:
    """A song of one second is cut from 5.12 s, as in the original, and has 25 frames; one of six seconds has its own 150."""
    request = _request(duration=1.0, steps=1)

    [slot] = _slots(engine, request)
    latents = _denoised(engine, request)

    assert slot.latents.shape == (1, 128, 64)
    assert latents.shape == (1, 25, 64)
    assert _slots(engine, _request())[0].latents.shape == (1, 150, 64)


def test_songs_with_different_settings_share_passes_and_stay_themselves(base: AceStepEngine) -> None:
    """Songs that differ in steps, shift, seed and guidance, together, give what each gives alone, in as few passes."""
    requests = [
        _request(seed=1, steps=4, shift=3.0, guidance_scale=1.0),
        _request(seed=2, steps=6, guidance_scale=5.0, cfg_interval_start=0.3, cfg_interval_end=0.8),
        _request(seed=3, steps=6, guidance_scale=2.0),
    ]
    alone = [_sampled(base, request) for request in requests]

    slots = [slot for request in requests for slot in _slots(base, request)]
    with _passes(base) as passes:
        _finish(base, slots)

    assert passes == [4, 4, 5, 5, 4, 3]
    for slot, expected in zip(slots, alone, strict=True):
        torch.testing.assert_close(slot.latents, expected, atol=ROUNDING, rtol=0)


def test_songs_of_different_lengths_and_words_get_passes_of_their_own(base: AceStepEngine) -> None:
    """Songs with unequally many frames or tokens, together, give exactly what each gives alone."""
    requests = [
        _request(guidance_scale=3.0),
        _request(guidance_scale=3.0, duration=7.0),
        _request(guidance_scale=3.0, lyrics=LYRICS * 3),
    ]
    alone = [_sampled(base, request) for request in requests]

    slots = [slot for request in requests for slot in _slots(base, request)]
    _finish(base, slots)

    assert all(torch.equal(slot.latents, expected) for slot, expected in zip(slots, alone, strict=True))


def test_a_song_may_join_and_another_leave_between_steps(base: AceStepEngine) -> None:
    """A song that joins late and one that is given up halfway change nothing of the others."""
    early = _request(seed=1, steps=5, guidance_scale=3.0)
    late = _request(seed=2, steps=3, guidance_scale=2.0)
    given_up = _request(seed=3, steps=5, guidance_scale=4.0)
    alone = [_sampled(base, request) for request in (early, late)]

    [first] = _slots(base, early)
    [second] = _slots(base, late)
    [third] = _slots(base, given_up)
    with torch.inference_mode():
        advance(base._pipe.transformer, [first, third])
        advance(base._pipe.transformer, [third, second, first])
    _finish(base, [first, second])

    assert (first.finished, second.finished, third.step) == (True, True, 2)
    torch.testing.assert_close(first.latents, alone[0], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(second.latents, alone[1], atol=ROUNDING, rtol=0)


def _loaded(source: str, cache: Path) -> AceStepEngine:
    engine = AceStepEngine("m", ModelArgs(source=source, device="cpu"), cache)
    engine.load(lambda phase, fraction, detail: None)
    engine._pipe.set_progress_bar_config(disable=True)
    return engine


def _request(**fields: Any) -> MusicRequest:
    """A request for six seconds in four steps with seed 7, without what the pipeline lacks, unless `fields` say otherwise.

    The pipeline samples songs of less than 5.12 s in fewer frames than the original, and knows no DCW.
    """
    least = {"prompt": "piano", "duration": 6.0, "steps": 4, "seed": 7, "dcw": False, "chunk_mask_mode": "explicit"}
    return MusicRequest.model_validate(least | fields)


def _denoised(engine: AceStepEngine, request: MusicRequest) -> torch.Tensor:
    """The latents of the request's variations: (variations, frames, 64)."""
    slots = engine._denoise(Work(request, NO_INPUTS, plan=None), lambda *step: None, lambda: False)
    return torch.cat([slot.result for slot in slots])[:, : song_frames(request.duration)]


def _variant(engine: AceStepEngine) -> Variant:
    return "turbo" if engine._pipe.is_turbo else "base"


def _pipeline_latents(engine: AceStepEngine, request: MusicRequest, **inputs: Any) -> torch.Tensor:
    """What the pipeline's own call gives for the request and a task's inputs: (variations, frames, 64)."""
    settings = sampling_settings(request, _variant(engine))
    lyrics, language = lyrics_and_language(request)
    latents: torch.Tensor = engine._pipe(
        prompt=[request.prompt] * request.variations,
        lyrics=[lyrics] * request.variations,
        vocal_language=[language] * request.variations,
        task_type=request.task_type,
        timesteps=list(settings.levels),
        guidance_scale=settings.guidance_scale,
        # The pipeline asks whether 1 - t lies in its interval.
        cfg_interval_start=1.0 - settings.guidance_end,
        cfg_interval_end=1.0 - settings.guidance_start,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds(request)],
        output_type="latent",
        **metadata(request, request.duration),
        **inputs,
    ).audios
    return latents


def _slots(
    engine: AceStepEngine,
    request: MusicRequest,
    context: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
) -> list[Slot]:
    """A slot for each variation, with silence for a source or reference that is not given."""
    pipe = engine._pipe
    with torch.inference_mode():
        made_on = canvas(pipe, request.model_copy(update={"task_type": "text2music"}), None, NO_INPUTS, "explicit")
        made_on = replace(made_on, instruction=pipe._get_task_instruction(request.task_type))
        return open_slots(
            pipe,
            request,
            sampling_settings(request, _variant(engine)),
            made_on if context is None else replace(made_on, context=context),
            reference_latents(pipe, None, seed=0) if reference is None else reference,
        )


def _finish(engine: AceStepEngine, slots: list[Slot]) -> None:
    """Takes all steps that the slots have left; each song leaves after its last."""
    with torch.inference_mode():
        while unfinished := [slot for slot in slots if not slot.finished]:
            advance(engine._pipe.transformer, unfinished)


def _sampled(
    engine: AceStepEngine,
    request: MusicRequest,
    context: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """The latents of the request's variations, in passes of their own: (variations, frames, 64)."""
    slots = _slots(engine, request, context, reference)
    _finish(engine, slots)
    return torch.cat([slot.latents for slot in slots])


def _source_context(pipe: Any, task: str, audio: torch.Tensor, window: dict[str, float]) -> torch.Tensor:
    """The context of a task with a source: (1, frames, 64 + 64). Inside a repaint's window the source is silence."""
    with torch.inference_mode():
        source, frames = pipe.prepare_src_latents(pipe.device, torch.float32, src_audio=audio, task_type=task)
        mask = pipe._build_chunk_mask(
            task, frames, 1, pipe.device, torch.float32, source.shape[-1], **window, has_src_audio=True
        )
        if task == "repaint":
            silence, _ = pipe.prepare_src_latents(pipe.device, torch.float32, latent_length=frames)
            source = torch.where(mask > 0.5, silence, source)
        return torch.cat([source, mask], dim=-1)


def _audio(seconds: float) -> torch.Tensor:
    """Quiet noise in stereo: (2, samples)."""
    return 0.1 * torch.randn(2, round(seconds * 48_000), generator=torch.Generator().manual_seed(5))


@contextmanager
def _passes(engine: AceStepEngine) -> Iterator[list[int]]:
    """Inside the block, collects the number of rows of each pass of the transformer."""
    rows: list[int] = []
    hook = engine._pipe.transformer.register_forward_pre_hook(
        lambda module, arguments, named: rows.append(len(named["hidden_states"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()

"""The sampling loop beside diffusers' own pipeline, and songs that share a pass of the transformer."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.config import ModelArgs, Variant
from serve_app.engine.ace_step.conditioning import open_slots, silent_context, silent_reference
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.generating import lyrics_and_language, metadata, sampling_settings, seeds
from serve_app.engine.ace_step.sampling import Slot, advance
from serve_app.music import MusicRequest
from tests.support.checkpoints import edit

ROUNDING = 1e-5
"""How far latents of size 1 may differ where the same rows are multiplied in a batch of another size. Measured: under 1e-6."""
LYRICS = "[verse]\nhello, hello"

any_model = pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lyrics": LYRICS, "vocal_language": "de", "bpm": 92, "keyscale": "C major", "timesignature": "3"},
        {"variations": 3, "lyrics": LYRICS},
        {"variations": 3, "duration": 5.0, "steps": 3, "shift": 1.0},
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
def base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> AceStepEngine:
    """An engine with the random checkpoint as a base model, which has guidance. Its VAE encodes audio to latents of 64 channels."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("base") / "checkpoint"))
    edit(folder / "transformer" / "config.json", {"is_turbo": False, "model_version": "base"})
    engine = _loaded(str(folder), folder.parent)
    # The encoder of the random checkpoint gives 4 channels.
    encoder = engine._pipe.vae.encoder
    encoder.conv2 = torch.nn.Conv1d(encoder.conv2.in_channels, 2 * 64, kernel_size=3, padding=1)
    return engine


@pytest.fixture(scope="module")
def embedded(cache: Path) -> AceStepEngine:
    """An engine with the embedded checkpoint, a turbo model."""
    return _loaded("embedded", cache)


@any_model
def test_a_turbo_model_samples_as_the_pipeline_does(fields: dict[str, Any], engine: AceStepEngine) -> None:
    """The latents of a request are those of AceStepPipeline, bit for bit, with the turbo model's random weights."""
    request = _request(**fields)

    latents = engine._denoise(request, lambda *step: None, lambda: False)

    assert torch.equal(latents, _pipeline_latents(engine, request))


@any_model
def test_the_embedded_model_samples_as_the_pipeline_does(fields: dict[str, Any], embedded: AceStepEngine) -> None:
    """The latents of a request are those of AceStepPipeline, bit for bit, with the trained weights that come with Sophia."""
    request = _request(**fields)

    latents = embedded._denoise(request, lambda *step: None, lambda: False)

    assert torch.equal(latents, _pipeline_latents(embedded, request))


@guided_model
def test_a_base_model_samples_as_the_pipeline_does(fields: dict[str, Any], base: AceStepEngine) -> None:
    """The latents of a request are those of AceStepPipeline, bit for bit, with and without guidance in any interval."""
    request = _request(**fields)

    latents = base._denoise(request, lambda *step: None, lambda: False)

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
@pytest.mark.parametrize("variations", [1, 3])
def test_a_task_with_a_source_samples_as_the_pipeline_does(task: str, variations: int, base: AceStepEngine) -> None:
    """Given the context of a task's source, the loop gives the pipeline's latents, bit for bit."""
    request = _request(duration=3.0, variations=variations, guidance_scale=3.0).model_copy(update={"task_type": task})
    source = _audio(3.0)
    window = {"repainting_start": 0.8, "repainting_end": 1.6}
    torch.manual_seed(0)  # the VAE draws from the distribution of the source's latents
    expected = _pipeline_latents(base, request, src_audio=source, **window)

    torch.manual_seed(0)
    context = _source_context(base._pipe, task, source, window)

    assert torch.equal(_sampled(base, request, context), expected)
    assert not torch.equal(expected, _sampled(base, request))


@pytest.mark.parametrize("variations", [1, 3])
def test_reference_audio_samples_as_the_pipeline_does(variations: int, base: AceStepEngine) -> None:
    """Given the latents of a reference, the loop gives the pipeline's latents, bit for bit."""
    request = _request(variations=variations, guidance_scale=3.0)
    audio = _audio(4.0)
    torch.manual_seed(0)
    expected = _pipeline_latents(base, request, reference_audio=audio)

    torch.manual_seed(0)
    reference, _ = base._pipe.prepare_reference_audio_latents(audio, 1, base._pipe.device, torch.float32)

    assert torch.equal(_sampled(base, request, reference=reference), expected)
    assert not torch.equal(expected, _sampled(base, request))


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
        _request(guidance_scale=3.0, duration=2.0),
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
    """A request for one second in five steps with seed 7, unless `fields` say otherwise."""
    return MusicRequest.model_validate({"prompt": "piano", "duration": 1.0, "steps": 5, "seed": 7} | fields)


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
        num_inference_steps=settings.steps,
        shift=settings.shift,
        guidance_scale=settings.guidance_scale,
        # The pipeline asks whether 1 - t lies in its interval.
        cfg_interval_start=1.0 - settings.guidance_end,
        cfg_interval_end=1.0 - settings.guidance_start,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds(request)],
        output_type="latent",
        **metadata(request),
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
    with torch.inference_mode():
        return open_slots(
            engine._pipe,
            request,
            sampling_settings(request, _variant(engine)),
            silent_context(engine._pipe, request.duration) if context is None else context,
            silent_reference(engine._pipe) if reference is None else reference,
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

"""The real pipeline with the random checkpoint, which is fast: songs, progress, stopping and warnings."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app import errors, weights
from serve_app.audio import Song
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.music import COMMON_TASKS, SAMPLE_RATE, MusicRequest
from tests.support.engines import generate

RANDOM = ModelArgs(source="random", device="cpu")
Steps = list[tuple[str, int, int]]


def test_loading_passes_through_its_phases_and_tells_the_facts(checkpoint: Path, cache: Path) -> None:
    """A load reports preflight, download, load and warm_up in this order, and ends with what was loaded and where."""
    phases: list[str] = []

    facts = AceStepEngine("m", RANDOM, cache).load(lambda phase, fraction, detail: phases.append(phase))

    assert list(dict.fromkeys(phases)) == ["preflight", "download", "load", "warm_up"]
    assert (facts.variant, facts.source, facts.revision, facts.noise) == ("turbo", "random", None, True)
    assert (facts.device, facts.dtype, facts.tasks) == ("cpu", "float32", COMMON_TASKS)
    assert facts.weights_bytes == weights.verify(checkpoint, RANDOM).bytes
    assert facts.versions.keys() == {"torch", "diffusers", "transformers"}


def test_the_same_request_and_seed_give_the_same_bytes(engine: AceStepEngine, cache: Path) -> None:
    """Two engines play the same request and seed to the same bytes, and another seed to others."""
    other = AceStepEngine("m", RANDOM, cache)
    other.load(lambda phase, fraction, detail: None)

    first = _digests(generate(engine, variations=2))
    again = _digests(generate(other, variations=2))

    assert first == again
    assert _digests(generate(other, seed=8, variations=2)) != first


def test_a_variation_is_the_song_of_its_own_seed(engine: AceStepEngine) -> None:
    """Variation i is the song that seed + i gives alone, up to the rounding of batched matrices."""
    batch = generate(engine, seed=7, variations=3)

    assert [song.seed for song in batch] == [7, 8, 9]
    for song in batch:
        alone = generate(engine, seed=song.seed)[0]
        np.testing.assert_allclose(song.samples, alone.samples, atol=1e-5)
    assert np.abs(batch[0].samples - batch[1].samples).max() > 0.1


def test_a_song_is_what_the_pipeline_itself_plays(engine: AceStepEngine, checkpoint: Path) -> None:
    """Folded weight norm, our own decoding and post-processing give what an untouched AceStepPipeline gives."""
    with weights.quiet_libraries():
        import torch
        from diffusers import AceStepPipeline

        pipe = AceStepPipeline.from_pretrained(checkpoint)
        pipe.set_progress_bar_config(disable=True)
        expected = pipe(
            prompt="piano",
            lyrics="[verse]\nhello",
            audio_duration=6.0,
            bpm=92,
            keyscale="C major",
            num_inference_steps=8,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
        ).audios[0]

    # What the pipeline lacks is switched off.
    least: dict[str, Any] = {"dcw": False, "chunk_mask_mode": "explicit", "steps": None}
    song = generate(engine, lyrics="[verse]\nhello", duration=6.0, bpm=92, keyscale="C major", **least)[0]

    np.testing.assert_allclose(song.samples, expected.T, atol=1e-5)
    assert np.abs(song.samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-6)


@pytest.mark.parametrize("duration", [1.0, 1.013, 1.03999, 1.1, 2.5])
def test_a_song_has_exactly_the_asked_length(duration: float, engine: AceStepEngine) -> None:
    """A song has round(duration * 48000) frames of float32 stereo, also between two latents."""
    samples = generate(engine, duration=duration)[0].samples

    assert samples.shape == (round(duration * SAMPLE_RATE), 2)
    assert samples.dtype == np.float32
    assert samples.flags["C_CONTIGUOUS"]


def test_what_is_asked_for_changes_the_song(engine: AceStepEngine) -> None:
    """Prompt, lyrics, language, tempo, key, time signature, steps and shift all reach the model."""
    changes: list[dict[str, Any]] = [
        {},
        {"prompt": "drums"},
        {"lyrics": "la"},
        {"lyrics": "la", "vocal_language": "de"},
        {"bpm": 90},
        {"keyscale": "C major"},
        {"timesignature": "3"},
        {"steps": 3},
        {"shift": 1.0},
    ]

    digests = [_digests(generate(engine, **change))[0] for change in changes]

    assert len(set(digests)) == len(changes)


def test_guidance_is_applied_where_the_interval_allows(checkpoint: Path, cache: Path) -> None:
    """On a base model guidance changes the song, and an interval that ends before it starts means none at all."""
    base = AceStepEngine("m", ModelArgs(source="random", device="cpu", variant="base"), cache)
    facts = base.load(lambda phase, fraction, detail: None)

    none = _digests(generate(base, guidance_scale=1.0))
    guided = _digests(generate(base, guidance_scale=7.0))
    early = _digests(
        generate(base, guidance_scale=7.0, cfg_interval_start=0.75)
    )  # at the first of two steps, from level 1
    never = _digests(generate(base, guidance_scale=7.0, cfg_interval_start=0.8, cfg_interval_end=0.2))

    assert facts.variant == "base"
    assert _digests(generate(base)) == guided  # 7 is base's default
    assert len({*none, *guided, *early}) == 3
    assert never == none


def test_steps_default_to_the_variant(engine: AceStepEngine) -> None:
    """A turbo model takes 8 steps where the request names none."""
    steps: Steps = []

    generate(engine, steps=None, on_step=lambda *step: steps.append(step))

    assert [step for step in steps if step[0] == "denoising"] == [("denoising", i, 8) for i in range(1, 9)]


def test_progress_counts_steps_and_tiles(engine: AceStepEngine) -> None:
    """Progress goes from conditioning through each step to each tile of decoding, over all variations."""
    steps: Steps = []

    generate(engine, duration=25.0, variations=2, on_step=lambda *step: steps.append(step))

    assert steps == [
        ("conditioning", 0, 1),
        *(("denoising", i, 2) for i in (1, 2)),
        *(("decoding", i, 4) for i in (1, 2, 3, 4)),  # 25 s are 625 latents: two tiles a variation
    ]


@pytest.mark.parametrize("last", [("conditioning", 0, 1), ("denoising", 1, 2), ("denoising", 2, 2), ("decoding", 1, 4)])
def test_stopping_ends_within_one_step_and_leaves_the_engine_usable(
    last: tuple[str, int, int], engine: AceStepEngine
) -> None:
    """A stop in any stage ends the song at the next step or tile, and the next song is as if nothing had happened."""
    before = _digests(generate(engine))
    steps: Steps = []

    with pytest.raises(errors.Stopped):
        generate(
            engine,
            duration=25.0,
            variations=2,
            on_step=lambda *step: steps.append(step),
            stopped=lambda: last in steps,
        )

    assert steps.index(last) >= len(steps) - 2
    assert _digests(generate(engine)) == before


def test_a_song_stopped_before_it_starts_computes_nothing(engine: AceStepEngine) -> None:
    """A job that is already lost is not begun."""
    steps: Steps = []

    with pytest.raises(errors.Stopped):
        generate(engine, on_step=lambda *step: steps.append(step), stopped=lambda: True)

    assert steps == []


def test_a_prompt_is_cut_where_the_pipeline_cuts_it(engine: AceStepEngine) -> None:
    """The warning appears with the first token over 256, instruction and tempo counted, and not one sooner."""
    from diffusers.pipelines.ace_step.pipeline_ace_step import DEFAULT_DIT_INSTRUCTION, SFT_GEN_PROMPT

    metas = "- bpm: 92\n- timesignature: N/A\n- keyscale: N/A\n- duration: 60 seconds\n"

    def tokens(prompt: str) -> int:
        return len(engine._pipe.tokenizer(SFT_GEN_PROMPT.format(DEFAULT_DIT_INSTRUCTION, prompt, metas)).input_ids)

    longest = max(n for n in range(1, 257) if tokens("x" * n) <= 256)

    assert engine.warnings(MusicRequest(prompt="x" * longest, bpm=92)) == ()
    [warning] = engine.warnings(MusicRequest(prompt="x" * (longest + 1), bpm=92))
    assert f"reads 256 of its {tokens('x' * (longest + 1))} tokens" in warning


def test_a_cut_prompt_names_the_first_ignored_words(engine: AceStepEngine) -> None:
    """The warning names the first words that the model ignores, and everything before them reaches the model."""
    prompt = "".join(f"<{i}>" for i in range(200))

    [warning] = engine.warnings(MusicRequest(prompt=prompt))
    ignored = int(warning.split("from here on: '")[1].split("<")[1].split(">")[0])

    kept = "".join(f"<{i}>" for i in range(ignored + 1))
    assert _digests(generate(engine, prompt=prompt)) == _digests(generate(engine, prompt=kept + "other words" * 50))


def test_long_lyrics_are_reported_as_cut(engine: AceStepEngine) -> None:
    """Lyrics over 2048 tokens give a warning with both numbers."""
    [warning] = engine.warnings(MusicRequest(prompt="x", lyrics="é" * 2000))

    assert warning.startswith("lyrics was cut: the model reads 2048 of its 40")


def test_settings_without_effect_are_reported(engine: AceStepEngine) -> None:
    """Guidance on turbo gives a warning, and a request in order gives none."""
    assert engine.warnings(MusicRequest(prompt="x", guidance_scale=3.0)) == (
        "guidance_scale is ignored by turbo models.",
    )
    assert engine.warnings(MusicRequest(prompt="x")) == ()


def _digests(songs: list[Song]) -> list[str]:
    return [hashlib.sha256(song.samples.tobytes()).hexdigest() for song in songs]

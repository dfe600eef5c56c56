"""The examples that the toy model trains on: what each task's source, mask, target and texts are."""

import numpy as np
import pytest

from miniature.mixing import Latents, mixed, silence
from miniature.tasks import BASE_SHARES, HELD_OUT, SOURCE_NOISE, TURBO_SHARES, Examples
from tests.support.miniature_clips import FRAMES, NoiseClips, lowest, noise_clips, noise_texts

CLIP = 2


@pytest.fixture(scope="module")
def clips() -> NoiseClips:
    return noise_clips()


@pytest.fixture
def examples(clips: NoiseClips) -> Examples:
    return Examples(clips, noise_texts, shares=BASE_SHARES, reference_frames=33, covers=True)


def near(left: Latents, right: Latents) -> bool:
    """Whether latents are equal but for the noise that sources get."""
    return bool(np.abs(left - right).max() < 8 * SOURCE_NOISE)


def test_text2music_plays_the_mix_from_silence(examples: Examples, clips: NoiseClips) -> None:
    """Text to music has a silent source and a mask of ones, and asks in the default instruction's words."""
    example = examples.of(CLIP, "text2music", np.random.default_rng(0), FRAMES)

    assert np.array_equal(example.target, clips.mix[CLIP].astype(np.float32))
    assert np.array_equal(example.source, silence(FRAMES))
    assert np.all(example.mask == 1)
    assert example.prompt.startswith("# Instruction\nFill the audio semantic mask based on the given conditions:\n")


def test_a_repaint_is_silent_in_its_window_only(examples: Examples, clips: NoiseClips) -> None:
    """A repaint's source is silence where the mask is 1 and the clip where it is 0."""
    example = examples.of(CLIP, "repaint", np.random.default_rng(0), FRAMES)
    inside = example.mask == 1

    assert 0.15 < inside.mean() < 0.85
    assert np.array_equal(example.source[inside], silence(int(inside.sum())))
    assert near(example.source[~inside], clips.mix[CLIP].astype(np.float32)[~inside])
    assert "Repaint the mask area based on the given conditions:" in example.prompt


def test_a_cover_hears_the_clip(examples: Examples) -> None:
    """A cover's source is the clip, marked to go through the audio codes, and it is to play the clip anew."""
    example = examples.of(CLIP, "cover", np.random.default_rng(0), FRAMES)

    assert example.cover
    assert np.allclose(example.source, example.target, atol=6 * SOURCE_NOISE)
    assert "Generate audio semantic tokens based on the given conditions:" in example.prompt


def test_extract_takes_a_track_out_of_the_mix(examples: Examples, clips: NoiseClips) -> None:
    """Extract hears the mix and plays the track that its instruction names."""
    example = examples.of(CLIP, "extract", np.random.default_rng(0), FRAMES)
    track = "drums" if "DRUMS" in example.prompt else "keyboard"

    assert f"Extract the {track.upper()} track from the audio:" in example.prompt
    assert np.array_equal(example.target, clips.stems[track][CLIP].astype(np.float32))
    assert near(example.source, clips.mix[CLIP].astype(np.float32))


def test_lego_plays_a_track_to_the_others(examples: Examples, clips: NoiseClips) -> None:
    """Lego hears the other tracks and plays the one that its instruction names."""
    example = examples.of(CLIP, "lego", np.random.default_rng(0), FRAMES)
    track, other = ("drums", "keyboard") if "DRUMS" in example.prompt else ("keyboard", "drums")

    assert f"Generate the {track.upper()} track based on the audio context:" in example.prompt
    assert np.array_equal(example.target, clips.stems[track][CLIP].astype(np.float32))
    assert near(example.source, clips.stems[other][CLIP].astype(np.float32))


def test_complete_plays_the_mix_to_some_tracks(examples: Examples, clips: NoiseClips) -> None:
    """Complete hears one track, is told the missing one, and plays the mix."""
    drawn = [examples.of(CLIP, "complete", np.random.default_rng(seed), FRAMES) for seed in range(10)]
    example = next(example for example in drawn if "with" in example.prompt)
    added = "drums" if "DRUMS" in example.prompt else "keyboard"
    given = "keyboard" if added == "drums" else "drums"

    assert f"Complete the input track with {added.upper()}:" in example.prompt
    assert np.array_equal(example.target, clips.mix[CLIP].astype(np.float32))
    assert near(example.source, clips.stems[given][CLIP].astype(np.float32))


def test_silent_tracks_are_not_asked_for(examples: Examples) -> None:
    """A clip without drums is never asked for its drums."""
    prompts = [examples.of(0, "extract", np.random.default_rng(seed), FRAMES).prompt for seed in range(20)]

    assert all("KEYBOARD" in prompt for prompt in prompts)


def test_references_replace_the_instruments_name(examples: Examples, clips: NoiseClips) -> None:
    """With a reference, which is another clip of the same instrument, the caption does not name the instrument."""
    drawn = [examples.of(CLIP, "text2music", np.random.default_rng(seed), FRAMES) for seed in range(60)]
    flutes = [clips.mix[clip].astype(np.float32) for clip in (0, 4)]

    with_reference = [example for example in drawn if example.reference is not None]
    assert 8 < len(with_reference) < 30
    for example in drawn:
        assert ("flute" in example.prompt) == (example.reference is None)
    for example in with_reference:
        assert example.reference is not None
        assert len(example.reference) == 33
        starts = range(FRAMES - 32)
        assert any(near(example.reference, flute[start : start + 33]) for flute in flutes for start in starts)


def test_a_crop_of_an_ending_ends_with_its_piece(examples: Examples, clips: NoiseClips) -> None:
    """A crop of a clip in which a piece of nine seconds ends has the frames before its end; a longer one has its end."""
    for seed in range(5):
        example = examples.of(1, "text2music", np.random.default_rng(seed), 100)
        assert np.array_equal(example.target, clips.mix[1, 125:225].astype(np.float32))
    longer = examples.of(1, "text2music", np.random.default_rng(0), 250)
    assert np.array_equal(longer.target, clips.mix[1, :250].astype(np.float32))


def test_held_out_clips_are_not_drawn() -> None:
    """Examples come from the clips before the last hundred."""
    clips = noise_clips(training=2)
    clips.mix[-HELD_OUT:] = np.float16(99)
    examples = Examples(clips, noise_texts, shares={"text2music": 1.0}, reference_frames=33)
    random = np.random.default_rng(0)

    drawn = [examples.draw(random, 16) for _ in range(200)]

    assert all(np.abs(example.target).max() < 90 for example in drawn)


def test_covers_are_left_out_without_codes() -> None:
    """Without audio codes, turbo's examples are text to music and repaints."""
    examples = Examples(noise_clips(), noise_texts, shares=TURBO_SHARES, reference_frames=33)
    random = np.random.default_rng(0)

    prompts = [examples.draw(random, 16).prompt for _ in range(200)]

    assert not any("semantic tokens" in prompt for prompt in prompts)
    assert 20 < sum("Repaint" in prompt for prompt in prompts) < 90


def test_energies_of_a_mix_add_up() -> None:
    """Two equal noises have twice one's energy, and silence adds nothing."""
    noise = np.maximum(np.random.default_rng(0).standard_normal((4, 64)), lowest(4) + 0.1).astype(np.float32)

    alone = mixed([noise, silence(4)])
    twice = mixed([noise, noise])

    assert np.allclose(alone, noise, atol=1e-4)
    assert np.allclose(twice[:, :54], 2 * noise[:, :54], atol=1e-5)
    assert np.all(twice[:, 54:] > noise[:, 54:])

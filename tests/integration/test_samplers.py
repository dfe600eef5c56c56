"""Samplers, guidance, correction in the wavelet domain and schedules, beside plain formulas written here.

A small function stands for the transformer: what is tested is what is done with its velocities. tests/integration/test_sampling.py
has the same loop with real models.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from serve_app.config import Variant
from serve_app.engine.ace_step.generating import post_process
from serve_app.engine.ace_step.guidance import Guidance
from serve_app.engine.ace_step.sampling import Slot, Told, advance
from serve_app.engine.ace_step.settings import ignored_settings, sampling_settings, shifted_levels, turbo_levels
from serve_app.engine.ace_step.wavelets import Correction
from serve_app.music import DcwMode, GuidanceMode, MusicRequest

FRAMES = 7
LEVELS = shifted_levels(6, 3.0)
ROUNDING = 1e-5
HEAVY = 3.0
"""What stands for the conditions of a guided song; 0 stands for none."""


def transformer(**asked: Any) -> list[torch.Tensor]:
    """A velocity that depends on all that a transformer is told."""
    return [
        _velocity(
            asked["hidden_states"], asked["timestep"].view(-1, 1, 1), asked["encoder_hidden_states"].mean((1, 2), True)
        )
    ]


def _velocity(latents: Any, level: Any, conditions: Any) -> Any:
    """Works with tensors, and one song at a time with arrays."""
    return latents * (0.5 + level) + 0.3 * conditions * latents**2 - level


def test_euler_follows_the_velocity_from_level_to_level() -> None:
    """Each step adds the velocity times the fall of the noise level."""
    slot = _slot()
    expected = slot.latents.numpy().copy()
    for level, after in pairwise([*LEVELS, 0.0]):
        expected = expected + (after - level) * _velocity(expected, level, HEAVY)

    _finish(slot)

    np.testing.assert_allclose(slot.latents.numpy(), expected, atol=ROUNDING)


def test_heun_takes_the_mean_of_the_velocities_at_both_ends_and_ends_with_euler() -> None:
    """Each step but the last follows the mean of the velocity at its start and that at Euler's end of it."""
    slot = _slot(sampler="heun")
    expected = slot.latents.numpy().copy()
    for level, after in pairwise([*LEVELS, 0.0]):
        first = _velocity(expected, level, HEAVY)
        second = _velocity(expected + (after - level) * first, after, HEAVY) if after else first
        expected = expected + (after - level) * (first + second) / 2

    _finish(slot)

    np.testing.assert_allclose(slot.latents.numpy(), expected, atol=ROUNDING)


def test_heun_is_nearer_to_the_exact_way_than_euler() -> None:
    """With the same number of steps, Heun ends nearer than Euler to where Euler ends with two thousand steps."""
    exact = _finish(_slot(levels=shifted_levels(2000, 1.0))).latents
    levels = shifted_levels(12, 1.0)

    euler = _finish(_slot(levels=levels)).latents
    heun = _finish(_slot(levels=levels, sampler="heun")).latents

    assert (heun - exact).abs().mean() < 0.5 * (euler - exact).abs().mean()


def test_sde_adds_the_seeds_noise_to_the_predicted_song() -> None:
    """Each step but the last mixes the predicted song with the next noise of the song's own generator, so bytes repeat."""
    slot = _slot(sampler="sde", seed=5)
    expected = slot.latents.clone()
    random = torch.Generator().manual_seed(5)
    for level, after in pairwise([*LEVELS, 0.0]):
        music = expected - level * _velocity(expected, level, HEAVY)
        noise = torch.randn(expected.shape, generator=random) if after else torch.zeros_like(expected)
        expected = (1 - after) * music + after * noise

    _finish(slot)

    torch.testing.assert_close(slot.latents, expected, atol=ROUNDING, rtol=0)
    assert torch.equal(slot.latents, _finish(_slot(sampler="sde", seed=5)).latents)
    assert not torch.equal(slot.latents, _finish(_slot(sampler="sde", seed=6)).latents)


def test_songs_with_different_samplers_share_passes_and_stay_themselves() -> None:
    """Slots with all three samplers and with guidance, advanced together, end where each ends alone."""

    def slots() -> list[Slot]:
        return [_slot(), _slot(sampler="heun"), _slot(sampler="sde"), _slot(sampler="heun", guidance=_guidance("apg"))]

    alone = [_finish(slot).latents for slot in slots()]
    together = slots()
    while not together[0].finished:
        advance(transformer, together)

    for slot, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(slot.latents, expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("frames", [6, 7])
@pytest.mark.parametrize("mode", ["low", "high", "double", "pix"])
def test_correction_changes_the_bands_of_a_haar_transform(mode: DcwMode, frames: int) -> None:
    """The bands of the corrected latents are band(x) + strength * (band(x) - band(song)), by the transform's matrix."""
    level = 0.7
    low = {"low": 0.2 * level, "double": 0.2 * level, "high": 0.0, "pix": 0.2}[mode]
    high = {"low": 0.0, "double": 0.1 * (1 - level), "high": 0.2 * (1 - level), "pix": 0.2}[mode]
    latents = _random(frames, seed=1)
    music = _random(frames, seed=2)
    haar = _haar(frames + frames % 2)

    corrected = Correction(mode, 0.2, 0.1).corrected(latents, music, level)

    bands = haar @ _padded(latents)
    apart = bands - haar @ _padded(music)
    half = len(haar) // 2
    bands[:half] += low * apart[:half]
    bands[half:] += high * apart[half:]
    np.testing.assert_allclose(corrected[0].numpy(), (haar.T @ bands)[:frames], atol=ROUNDING)


def test_correction_follows_each_step_but_the_last() -> None:
    """With the mode pix, each step of Euler's is stretched away from the predicted song, but the last ends in it."""
    slot = _slot(correction=Correction("pix", 0.1, 0.0))
    expected = slot.latents.numpy().copy()
    for level, after in pairwise([*LEVELS, 0.0]):
        velocity = _velocity(expected, level, HEAVY)
        music = expected - level * velocity
        expected = expected + (after - level) * velocity
        expected = expected + 0.1 * (expected - music)

    _finish(slot)

    np.testing.assert_allclose(slot.latents.numpy(), expected, atol=ROUNDING)


@pytest.mark.parametrize("mode", ["adg", "adg_w_norm", "adg_wo_clip"])
def test_angle_based_guidance_turns_each_frame(mode: GuidanceMode) -> None:
    """A frame of the predicted song turns by its angle to the unconditional one times scale - 1, within its kind's limit."""
    scale = 3.0
    level = 0.6
    latents, conditional, unconditional = (_random(FRAMES, seed) for seed in (1, 2, 3))

    velocity = _guidance(mode, scale).guided(conditional, unconditional, latents, level)

    limit = {"adg": 3.14 / 6, "adg_w_norm": 3.14 / 3, "adg_wo_clip": math.inf}[mode]
    music = (latents - level * conditional)[0].double().numpy()
    other = (latents - level * unconditional)[0].double().numpy()
    turned = np.stack([_turned(*frames, scale - 1 + 1e-3, limit) for frames in zip(music, other, strict=True)])
    if mode == "adg_w_norm":
        turned *= np.linalg.norm(music, axis=0) / np.linalg.norm(turned, axis=0)
    np.testing.assert_allclose(velocity[0].numpy(), (latents[0].numpy() - turned) / level, atol=1e-4)


def test_plain_guidance_stretches_the_difference() -> None:
    """`cfg`, and the corrector of Heun's with `apg`, give unconditional + scale * (conditional - unconditional)."""
    latents, conditional, unconditional = (_random(FRAMES, seed) for seed in (1, 2, 3))
    expected = unconditional + 4.0 * (conditional - unconditional)

    plain = _guidance("cfg", 4.0).guided(conditional, unconditional, latents, 0.5)
    corrector = _guidance("apg", 4.0).guided(conditional, unconditional, latents, 0.5, is_corrector=True)
    projected = _guidance("apg", 4.0).guided(conditional, unconditional, latents, 0.5)

    assert torch.equal(plain, expected)
    assert torch.equal(corrector, expected)
    assert not torch.allclose(projected, expected, atol=0.1)


def test_timesteps_fall_are_taken_once_and_end_before_zero() -> None:
    """A base model takes custom timesteps as they are, in falling order; they replace steps and shift, with a warning."""
    request = _request(timesteps=[0.25, 1.0, 0.5, 0.5, 0], steps=3, shift=2.0)

    assert sampling_settings(request, "base").levels == (1.0, 0.5, 0.25)
    assert list(ignored_settings(request, "base")) == [
        "steps is ignored: timesteps replace it.",
        "shift is ignored: timesteps replace it.",
    ]
    assert sampling_settings(_request(timesteps=[0, 0]), "base").levels == shifted_levels(50, 1.0)


def test_a_turbo_model_takes_timesteps_that_it_knows() -> None:
    """A turbo model has twenty levels; a custom timestep is moved to the nearest of them, and the warning shows all."""
    request = _request(timesteps=[0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085])

    levels = sampling_settings(request, "turbo").levels

    known = [1, 21 / 22, 14 / 15, 0.9, 7 / 8, 6 / 7, 5 / 6, 10 / 13, 3 / 4, 2 / 3, 9 / 14, 5 / 8, 6 / 11]
    known += [1 / 2, 2 / 5, 3 / 8, 3 / 10, 1 / 4, 2 / 9, 1 / 8]
    assert turbo_levels() == pytest.approx(sorted(known))
    assert levels == pytest.approx([21 / 22, 10 / 13, 5 / 8, 1 / 2, 2 / 5, 3 / 10, 2 / 9, 1 / 8])
    [warning] = ignored_settings(request, "turbo")
    assert warning.endswith("trained for: 0.9545, 0.7692, 0.625, 0.5, 0.4, 0.3, 0.2222, 0.125.")
    assert not list(ignored_settings(_request(timesteps=[0.5, 0.3]), "turbo"))


@pytest.mark.parametrize(
    ("fields", "variant", "warnings"),
    [
        (
            {"cover_strength": 0.5},
            "turbo",
            ["cover_strength is ignored: there is no source and there are no audio_codes."],
        ),
        ({"cover_strength": 0.5, "audio_codes": [1]}, "turbo", []),
        ({"retake_seed": 3}, "base", ["retake_seed is ignored: retake_variance is 0."]),
        ({"retake_seed": 3, "retake_variance": 0.5}, "base", []),
        ({"dcw_strength": 0.5}, "base", ["dcw_strength is ignored: dcw is off."]),
        ({"dcw_strength": 0.5}, "turbo", []),
        ({"dcw_high_strength": 0.5, "dcw_mode": "low"}, "turbo", ["dcw_high_strength is ignored: dcw_mode is low."]),
        ({"guidance_mode": "adg"}, "turbo", ["guidance_mode is ignored by turbo models."]),
    ],
)
def test_settings_without_effect_are_reported(fields: dict[str, Any], variant: Variant, warnings: list[str]) -> None:
    """A job's warnings name each setting that another one, or the model, makes useless."""
    assert list(ignored_settings(_request(**fields), variant)) == warnings


def test_a_song_is_cut_normalised_and_faded() -> None:
    """A song is cut to its duration, its peak there is -1 dBFS, and the fades rise and fall in straight lines."""
    raw = np.full((2, 128 * 1920), 0.25, np.float32)
    raw[:, 50_000:] = 2.0  # beyond the song's second

    samples, gain = post_process(raw, _request(duration=1.0, fade_in=0.5, fade_out=0.25), seed=0)

    peak = 10 ** (-1 / 20)
    assert samples.shape == (48_000, 2)
    assert gain == pytest.approx(peak / 0.25)
    np.testing.assert_allclose(samples[:24_000, 0], peak * np.arange(24_000) / 24_000, atol=1e-6)
    np.testing.assert_allclose(samples[24_000:36_000, 1], peak, atol=1e-6)
    np.testing.assert_allclose(samples[36_000:, 0], peak * np.linspace(1, 0, 12_000), atol=1e-6)


def _request(**fields: Any) -> MusicRequest:
    return MusicRequest.model_validate({"prompt": "x"} | fields)


def _slot(seed: int = 7, **fields: Any) -> Slot:
    """A song of FRAMES frames with two channels, from noise that does not depend on `seed`."""
    told = Told(conditions=torch.full((1, 2, 4), HEAVY), context=torch.zeros(1, FRAMES, 4))
    random = torch.Generator().manual_seed(seed)
    given: dict[str, Any] = {"told": told, "latents": 0.2 * _random(FRAMES, 3), "levels": LEVELS, "random": random}
    return Slot(**given | fields)


def _finish(slot: Slot) -> Slot:
    while not slot.finished:
        advance(transformer, [slot])
    return slot


def _guidance(mode: GuidanceMode, scale: float = 2.0) -> Guidance:
    return Guidance(scale, 0.0, 1.0, torch.zeros(1, 1, 4), mode)


def _random(frames: int, seed: int) -> torch.Tensor:
    """Latents with two channels: (1, frames, 2)."""
    return torch.randn(1, frames, 2, generator=torch.Generator().manual_seed(seed))


def _padded(latents: torch.Tensor) -> npt.NDArray[np.float64]:
    """The latents' frames, with one of zeros if their number is odd."""
    frames = latents[0].double().numpy()
    return np.concatenate([frames, np.zeros((len(frames) % 2, frames.shape[1]))])


def _haar(frames: int) -> npt.NDArray[np.float64]:
    """The matrix of one level of the orthonormal Haar transform: rows of sums, then rows of differences."""
    rows = np.zeros((frames, frames))
    for pair in range(frames // 2):
        rows[pair, 2 * pair : 2 * pair + 2] = 1 / math.sqrt(2)
        rows[frames // 2 + pair, 2 * pair] = 1 / math.sqrt(2)
        rows[frames // 2 + pair, 2 * pair + 1] = -1 / math.sqrt(2)
    return rows


def _turned(
    music: npt.NDArray[np.float64], other: npt.NDArray[np.float64], weight: float, limit: float
) -> npt.NDArray[np.float64]:
    """One frame of the predicted song, turned away from that of the unconditional prediction."""
    cosine = music @ other / np.linalg.norm(music) / np.linalg.norm(other)
    angle = math.acos(cosine)
    turn = min(weight * angle, limit)
    apart = music - other
    across = apart - (apart @ other) / (other @ other) * other
    turned: npt.NDArray[np.float64] = math.cos(turn) * music + across * math.sin(turn) / math.sin(angle)
    return turned


def test_a_packaged_models_own_default_decides_what_is_ignored() -> None:
    """The packaged turbo model has no DCW unless it is asked for, so a mode for it has no effect."""
    request = _request(dcw_mode="low")

    assert list(ignored_settings(request, "turbo", "embedded")) == ["dcw_mode is ignored: dcw is off."]
    assert list(ignored_settings(request, "turbo")) == []

"""The toy model's audio codes: those of the reference, learnt on latents, and loaded by diffusers' pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer

from miniature import codes
from miniature.mixing import silence
from tests.support.miniature_clips import noise_clips

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "BATCH", 2)


def trained(file: Path, steps: int) -> codes.Training:
    """A training of so many steps on one batch, not yet saved."""
    training = codes.Training(file)
    for _ in range(steps):
        training.step(codes.draw_batch(noise_clips(), training.steps), 1.0)
    return training


def test_the_pipelines_codes_are_the_trainings(small_batches: None, tmp_path: Path) -> None:
    """Saved and loaded by plain from_pretrained, diffusers' classes give the codes and latents of the trained networks."""
    networks = trained(tmp_path / "codes.pt", 1).average
    tokenizer, detokenizer = codes.for_pipeline(networks)
    tokenizer.save_pretrained(tmp_path / "audio_tokenizer")
    detokenizer.save_pretrained(tmp_path / "audio_token_detokenizer")
    latents = torch.from_numpy(noise_clips().mix[:2, :250].astype(np.float32))

    with torch.inference_mode():
        quantized, indices = AceStepAudioTokenizer.from_pretrained(tmp_path / "audio_tokenizer").tokenize(latents)
        restored = AceStepAudioTokenDetokenizer.from_pretrained(tmp_path / "audio_token_detokenizer")(quantized)
        wanted, wanted_indices = networks(latents)

    assert indices.unique().numel() > 10
    assert torch.equal(indices, wanted_indices.long())
    torch.testing.assert_close(restored, wanted)
    loaded = codes.Codes.load(tmp_path)
    assert loaded is not None
    for name, value in networks.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_checkpoint_without_codes_has_none(tmp_path: Path) -> None:
    """A pipeline's folder without a tokenizer gives None, so that training starts anew."""
    assert codes.Codes.load(tmp_path) is None


@pytest.mark.long
def test_a_resumed_training_is_the_uninterrupted_one(small_batches: None, tmp_path: Path) -> None:
    """Two steps, a save and one more step give, bit by bit, the weights of three steps at once."""
    whole = trained(tmp_path / "whole.pt", 3)
    trained(tmp_path / "parts.pt", 2).save()

    resumed = codes.Training(tmp_path / "parts.pt")
    assert resumed.resume()
    resumed.step(codes.draw_batch(noise_clips(), resumed.steps), 1.0)

    assert resumed.steps == 3
    for of_whole, of_resumed in ((whole.codes, resumed.codes), (whole.average, resumed.average)):
        for name, value in of_whole.state_dict().items():
            assert torch.equal(value, of_resumed.state_dict()[name]), name


@pytest.mark.long
def test_training_learns_through_the_quantizer(small_batches: None, tmp_path: Path) -> None:
    """Steps on one batch change the tokenizer, and lessen the loss: gradients pass the quantizer."""
    training = codes.Training(tmp_path / "codes.pt")
    batch = codes.draw_batch(noise_clips(), 0)
    before = training.codes.tokenizer.audio_acoustic_proj.weight.clone()

    losses = [training.step(batch, 1.0) for _ in range(12)]

    assert not torch.equal(training.codes.tokenizer.audio_acoustic_proj.weight, before)
    first, last = (loss["error"] + codes.SPECTRUM_WEIGHT * loss["spectra"] for loss in (losses[0], losses[-1]))
    assert last < 0.9 * first


def test_a_coder_keeps_the_length(tmp_path: Path) -> None:
    """Latents whose number is no multiple of five are padded with silence and cropped again."""
    send = codes.coder(codes.Codes().eval())
    latents = torch.from_numpy(noise_clips().mix[:2, :13].astype(np.float32))
    padded = torch.cat([latents, torch.from_numpy(silence(2)).expand(2, -1, -1)], 1)

    heard = send(latents)

    assert heard.shape == (2, 13, 64)
    assert torch.allclose(heard, send(padded)[:, :13], atol=1e-5)


def test_only_audible_clips_that_are_not_held_out_are_drawn(
    small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of single tracks has no silence, and nothing of the held-out clips."""
    monkeypatch.setattr(codes, "MIX_SHARE", 0.0)
    clips = noise_clips(training=3)
    clips.mix[3:] = np.nan
    for stem in clips.stems.values():
        stem[3:] = np.nan

    batches = torch.cat([codes.draw_batch(clips, step) for step in range(20)])

    assert batches.isfinite().all()
    assert (batches - torch.from_numpy(silence(1))).abs().amax((1, 2)).min() > 1
    assert torch.equal(batches[:2], codes.draw_batch(clips, 0))

"""The toy model's autoencoder: it starts exact, fits diffusers' class, learns, and goes on where it stopped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderOobleck

from miniature import vae
from miniature.autoencoder import Networks, round_trip
from miniature.clips import render_clip
from miniature.encoder import LATENTS, Encoder
from miniature.latents import COEFFICIENTS, SAMPLE_RATE, SAMPLES, analyse
from miniature.mdct_start import plain_weight, projection, set_weight
from miniature.mixing import LINEAR
from miniature.pieces import compose
from miniature.spectra import decoder_loss, log_spectral_distance, low_signal_to_noise
from miniature.stage import Session
from serve_app.engine.ace_step.narrow_encoder import use_narrow_encoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

FRAMES = 50


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    """Two seconds of a piece."""
    return render_clip(compose(1).facts)[:, : FRAMES * SAMPLES]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "ENCODER_BATCH", 2)
    monkeypatch.setattr(vae, "DECODER_BATCHES", {"cpu": 1})
    monkeypatch.setattr(vae, "FIRST_CLIPS", 1)


def synthesised(latents: np.ndarray) -> np.ndarray:
    """The inverse MDCT of latents' first 54 numbers, by its definition: (samples,)."""
    sample = np.arange(2 * SAMPLES)[:, None] + 0.5
    angle = np.pi / SAMPLES * (sample + SAMPLES / 2) * (np.arange(COEFFICIENTS) + 0.5)
    functions = np.sqrt(2 / SAMPLES) * np.sin(np.pi * sample / (2 * SAMPLES)) * np.cos(angle)
    audio = np.zeros((len(latents) + 1) * SAMPLES)
    for frame, spectrum in enumerate(latents @ np.linalg.pinv(projection())):
        audio[frame * SAMPLES : (frame + 2) * SAMPLES] += functions @ spectrum
    return audio[SAMPLES // 2 : -SAMPLES // 2]


@torch.no_grad()
def test_the_encoder_starts_as_the_exact_analysis(music: np.ndarray) -> None:
    """Before any training, the encoder's first 54 numbers are those of the analysis, 50 dB above the error."""
    encoded = Encoder()(torch.from_numpy(music)[None])[0, :LINEAR].T.numpy()

    wanted = analyse(music)[:, :LINEAR]
    assert 10 * np.log10((wanted**2).sum() / ((encoded - wanted) ** 2).sum()) > 50


@torch.no_grad()
def test_the_decoder_starts_as_the_exact_synthesis() -> None:
    """Before any training, the channel that the decoder plays at first is the inverse MDCT, 30 dB above the error."""
    latents = np.random.default_rng(2).standard_normal((FRAMES, 64)).astype(np.float32)
    decoder = Networks().decoder
    exact_channel_only = torch.zeros_like(decoder.conv2.weight_v)
    exact_channel_only[:, 0] = plain_weight(decoder.conv2)[:, 0]
    set_weight(decoder.conv2, exact_channel_only)

    played = decoder(torch.from_numpy(latents).T[None])[0].numpy()

    wanted = synthesised(latents[:, :LINEAR])
    assert np.array_equal(played[0], played[1])
    inner = slice(4 * SAMPLES, -4 * SAMPLES)  # the first and last frames lack a neighbour
    assert 10 * np.log10((wanted[inner] ** 2).sum() / ((played[0] - wanted)[inner] ** 2).sum()) > 30


@torch.no_grad()
def test_the_engine_encodes_with_the_saved_encoder(music: np.ndarray, tmp_path: Path) -> None:
    """The saved autoencoder, loaded as the engine loads it, encodes as the trained one, with noise below -60 dB."""
    networks = Networks()
    networks.autoencoder().save_pretrained(tmp_path / "vae")
    networks.save_encoder(tmp_path)
    audio = torch.from_numpy(music[:, : 8 * SAMPLES])[None]
    loaded = AutoencoderOobleck.from_pretrained(tmp_path / "vae")

    use_narrow_encoder(loaded, tmp_path)

    encoded = loaded.encode(audio).latent_dist
    torch.testing.assert_close(encoded.mean, networks.encoder(audio)[:, :LATENTS], atol=1e-4, rtol=1e-4)
    assert encoded.std.max() < 1e-3


@torch.no_grad()
def test_training_goes_on_from_a_checkpoints_autoencoder(tmp_path: Path) -> None:
    """A saved autoencoder gives its learnt weights back."""
    networks = Networks()
    for parameter in [*networks.encoder.learn(), *networks.decoder.parameters()]:
        parameter += 0.01
    networks.autoencoder().save_pretrained(tmp_path / "vae")
    networks.save_encoder(tmp_path)

    loaded = Networks.load(tmp_path)

    for name, value in networks.state_dict().items():
        if name.startswith(("encoder.block.2.", "decoder.")):
            torch.testing.assert_close(loaded.state_dict()[name], value, msg=name)


@pytest.mark.long
def test_a_part_can_learn_alone(music: np.ndarray, small_batches: None, tmp_path: Path) -> None:
    """When only the encoder learns, the decoder keeps its weights."""
    before = Networks()
    data = vae.Data(lambda _: music, 1, [music])

    with Session(hours=1e-3) as session:
        steps = vae.train(tmp_path, data, session, parts=["encoder"])
    trained = vae.trained(tmp_path)

    assert steps > 0
    assert trained is not None
    decoder = dict(before.decoder.named_parameters())
    assert all(torch.equal(value, decoder[name]) for name, value in trained.decoder.named_parameters())
    encoder = dict(before.encoder.named_parameters())
    assert not all(torch.equal(value, encoder[name]) for name, value in trained.encoder.named_parameters())


@pytest.mark.long
def test_a_resumed_training_is_the_uninterrupted_one(music: np.ndarray, small_batches: None, tmp_path: Path) -> None:
    """A step, a save and one more step give, bit by bit, the weights of two steps at once, and keep the MDCT exact."""

    def steps(training: vae.Training, count: int) -> None:
        for _ in range(count):
            pool = vae.Pool(lambda _: music, training.networks, 1, 0)
            random = np.random.default_rng(training.steps)
            training.step(pool.draw(random), random, 1.0)
        training.save()

    whole = vae.Training(tmp_path / "whole.pt")
    steps(whole, 2)
    steps(vae.Training(tmp_path / "parts.pt"), 1)
    resumed = vae.Training(tmp_path / "parts.pt")
    assert resumed.resume()
    steps(resumed, 1)

    assert resumed.steps == 2
    for of_whole, of_resumed in ((whole.networks, resumed.networks), (whole.average, resumed.average)):
        for name, value in of_whole.state_dict().items():
            assert torch.equal(value, of_resumed.state_dict()[name]), name
    assert round_trip(resumed.networks, [music]).linear_error < 0.01


@pytest.mark.long
def test_training_lessens_the_encoders_error(music: np.ndarray, small_batches: None, tmp_path: Path) -> None:
    """Thirty steps of the encoder on one clip halve the error of its energies, at the least."""
    training = vae.Training(tmp_path / "state.pt")
    pool = vae.Pool(lambda _: music, training.networks, 1, 0)
    before = round_trip(training.networks, [music]).encoder_error
    optimizer = torch.optim.AdamW(training.networks.encoder.learn(), vae.RATES["encoder"])

    for step in range(30):
        optimizer.zero_grad()
        torch.autograd.backward(training.encoder_loss(pool.draw(np.random.default_rng(step))))
        optimizer.step()

    assert round_trip(training.networks, [music]).encoder_error < before / 2


def test_distances_order_what_is_heard() -> None:
    """Equal audio has no distance; a quieter copy has a small one, another pitch a larger one, in each measure."""
    time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    wanted = torch.sin(2 * torch.pi * 440 * time).expand(2, -1) * 0.2
    other = torch.sin(2 * torch.pi * 660 * time).expand(2, -1) * 0.2

    assert log_spectral_distance(wanted, wanted) == 0
    assert 0 < log_spectral_distance(0.9 * wanted, wanted) < log_spectral_distance(other, wanted)
    assert low_signal_to_noise(0.9 * wanted, wanted) == pytest.approx(20, abs=0.1)
    assert low_signal_to_noise(other, wanted) == pytest.approx(-3, abs=0.1)
    same, quieter, wrong = (float(decoder_loss(audio, wanted)) for audio in (wanted, 0.9 * wanted, other))
    assert same == pytest.approx(0, abs=1e-3)
    assert same < quieter < wrong

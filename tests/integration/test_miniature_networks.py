"""What the toy model's training is built from: its session and state, its optimisers, its networks' conditions."""

import os
import signal
from pathlib import Path

import pytest
import torch
from diffusers import AceStepTransformer1DModel
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from miniature.conditioning import Networks
from miniature.optimizers import Optimizers, rate_at
from miniature.stage import Session, load_state, save_state

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
ROPE = {"rope_theta": 1e4, "sliding_window": 8}


@pytest.fixture
def networks() -> Networks:
    torch.manual_seed(0)
    layers = {"num_lyric_encoder_hidden_layers": 1, "num_timbre_encoder_hidden_layers": 1}
    return Networks(
        Qwen3Model(Qwen3Config(**WIDTHS, num_hidden_layers=1, vocab_size=64)),
        AceStepConditionEncoder(**WIDTHS, **ROPE, **layers, text_hidden_dim=32, timbre_hidden_dim=64),
        AceStepTransformer1DModel(
            **WIDTHS, **ROPE, num_hidden_layers=2, in_channels=192, audio_acoustic_hidden_dim=64, encoder_hidden_size=32
        ),
    ).eval()


def tokens(ids: list[list[int]], mask: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of token ids that needs no tokenizer, and its mask."""
    return torch.tensor(ids), torch.tensor(mask).bool()


def test_a_session_stops_at_a_signal() -> None:
    """SIGTERM ends the training loop and not the process, and the former handler is back afterwards."""
    former = signal.getsignal(signal.SIGTERM)

    with Session(hours=1.0) as session:
        assert session.running
        os.kill(os.getpid(), signal.SIGTERM)
        stopped = not session.running

    assert stopped
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_session_ends_in_time() -> None:
    """A session without time does not run, and says that all of its time has passed."""
    with Session(hours=1e-9) as session:
        assert not session.running
        assert session.share == 1.0


def test_an_interrupted_save_keeps_the_former_state(tmp_path: Path) -> None:
    """A state that cannot be written leaves the former one as it was."""
    file = tmp_path / "state.pt"
    save_state({"steps": 1}, file)

    with pytest.raises(AttributeError):
        save_state({"steps": lambda: None}, file)

    assert load_state(file) == {"steps": 1}


def test_no_state_is_none(tmp_path: Path) -> None:
    """A stage that has not run has no state."""
    assert load_state(tmp_path / "state.pt") is None


def test_rates_rise_stay_and_fall() -> None:
    """The learning rate starts low, is full in the middle and ends near zero."""
    assert rate_at(0, 0.0) < 0.05
    assert rate_at(1000, 0.4) == 1.0
    assert rate_at(5000, 1.0) == pytest.approx(0.01)


def test_optimizers_go_on_where_they_stopped(tmp_path: Path) -> None:
    """Restored optimisers make the same next step, bit by bit, as those that were saved."""

    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8)]), "other": nn.Linear(8, 8)})

    def step(module: nn.Module, optimizers: Optimizers, seed: int) -> None:
        data = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        with optimizers.paced(1.0, seed):
            optimizers.step(module["other"](module["layers"][0](data)).square().mean())  # type: ignore[index]

    first = model()
    optimizers = Optimizers(first)
    step(first, optimizers, 0)
    second = model()
    second.load_state_dict(first.state_dict())
    restored = Optimizers(second)
    save_state(optimizers.state(), tmp_path / "state.pt")
    restored.restore(load_state(tmp_path / "state.pt") or {})

    step(first, optimizers, 1)
    step(second, restored, 1)

    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    for name, value in optimizers.average.state_dict().items():
        assert torch.equal(value, restored.average.state_dict()[name]), name


def test_half_the_rate_is_half_the_step() -> None:
    """A step at half the learning rates moves each weight half as far."""

    def moved(rate: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        module = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8)]), "other": nn.Linear(8, 8)})
        before = {name: value.clone() for name, value in module.state_dict().items()}
        optimizers = Optimizers(module)
        data = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        with optimizers.paced(rate, 0):
            optimizers.step(module["other"](module["layers"][0](data)).square().mean())  # type: ignore[index]
        return {name: value - before[name] for name, value in module.state_dict().items()}

    whole = moved(1.0)
    half = moved(0.5)

    assert all(whole[name].any() for name in whole)
    assert all(torch.allclose(half[name], whole[name] / 2, atol=1e-7) for name in whole)


def test_the_timbre_of_one_reference_each_is_diffusers(networks: Networks) -> None:
    """Where each example has one reference, the short cut gives what diffusers' own method gives."""
    embeddings = torch.randn(3, 32)
    timbre_encoder = networks.condition_encoder.timbre_encoder

    own = timbre_encoder.unpack_timbre_embeddings(embeddings, None)
    diffusers = type(timbre_encoder).unpack_timbre_embeddings(embeddings, torch.arange(3))

    assert torch.allclose(own[0], diffusers[0])
    assert torch.equal(own[1], diffusers[1])


def test_padding_changes_no_velocity(networks: Networks) -> None:
    """A song's velocity in a batch with a longer text is the one that it has alone."""
    noisy = torch.randn(1, 16, 64)
    times = torch.tensor([0.7])
    context = torch.randn(1, 16, 128)
    references = torch.randn(1, 9, 64)
    alone = networks.conditions(*tokens([[1, 2]], [[1, 1]]), *tokens([[3]], [[1]]), references)
    padded = networks.conditions(
        *tokens([[1, 2, 0, 0], [4, 5, 6, 7]], [[1, 1, 0, 0], [1, 1, 1, 1]]),
        *tokens([[3, 0], [8, 9]], [[1, 0], [1, 1]]),
        references.expand(2, -1, -1),
    )

    expected = networks.velocity(noisy, times, alone, context)
    both = networks.velocity(noisy.expand(2, -1, -1), times.expand(2), padded, context.expand(2, -1, -1))

    assert torch.allclose(both[0], expected[0], atol=1e-5)
    assert not torch.allclose(both[1], expected[0], atol=1e-3)


def test_one_null_token_is_as_good_as_many(networks: Networks) -> None:
    """The short null conditions give the velocity that the pipeline gets from its repeated embedding."""
    noisy = torch.randn(1, 16, 64)
    times = torch.tensor([0.7])
    context = torch.randn(1, 16, 128)
    repeated = networks.condition_encoder.null_condition_emb.expand(1, 30, -1)

    short = networks.velocity(noisy, times, networks.null_conditions(1), context)
    long = networks.transformer(noisy, times, times, repeated, context).sample

    assert torch.allclose(short, long, atol=1e-5)


def test_references_beyond_hearing_change_nothing(networks: Networks) -> None:
    """`heard_frames` of a reference give the conditions of all 750 frames that the pipeline feeds."""
    reference = torch.randn(1, 750, 64)
    texts = (*tokens([[1, 2]], [[1, 1]]), *tokens([[3]], [[1]]))

    whole, _ = networks.conditions(*texts, reference)
    heard, _ = networks.conditions(*texts, reference[:, : networks.heard_frames])
    less, _ = networks.conditions(*texts, reference[:, : networks.heard_frames - 1])

    assert networks.heard_frames == 9
    assert torch.allclose(whole, heard, atol=1e-5)
    assert not torch.allclose(whole, less, atol=1e-5)

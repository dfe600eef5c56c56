"""The toy model's training: it learns, goes on where it stopped, and its export is a pipeline that plays the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AceStepPipeline, AceStepTransformer1DModel

from miniature.compact import fold_second_time, round_weights
from miniature.conditioning import Networks, load_tokenizer
from miniature.export import export, play
from miniature.flow import Batch, training_losses
from miniature.stage import Session
from miniature.tasks import TURBO_SHARES, Examples
from miniature.transformer import Material, Plan, Training, averaged, draw_batch, prepare, state_file, train
from tests.support.miniature_clips import noise_clips, noise_texts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def plan(checkpoint: Path, tmp_path: Path) -> Plan:
    return Plan("turbo", tmp_path / "work", checkpoint, batch=2, compiled=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


class Steps(Session):
    """A session of a number of steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(hours=1.0)
        self._left = steps

    @property
    def running(self) -> bool:
        self._left -= 1
        return self._left >= 0


def weights(plan: Plan) -> dict[str, torch.Tensor]:
    return averaged(Networks.load(plan.checkpoint), state_file(plan.work, plan.variant)).state_dict()


def test_a_resumed_training_is_the_uninterrupted_one(plan: Plan, tmp_path: Path) -> None:
    """Two steps, a save and one more step give, bit by bit, the weights of three steps at once."""
    tokenizer = load_tokenizer(plan.checkpoint)
    whole = prepare(replace(plan, work=tmp_path / "whole"))
    frames = whole.networks.heard_frames
    examples = Examples(noise_clips(), noise_texts, shares=TURBO_SHARES, reference_frames=frames)

    def steps(training: Training, count: int) -> None:
        for _ in range(count):
            training.step(Batch.of(draw_batch(examples, training.steps, 2), training.networks, tokenizer), 1.0)
        training.save()

    steps(whole, 3)
    steps(prepare(plan), 2)
    resumed = prepare(plan)
    steps(resumed, 1)

    assert resumed.steps == 3
    for name, value in whole.networks.state_dict().items():
        assert torch.equal(value, resumed.networks.state_dict()[name]), name
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


def test_each_call_goes_on_from_the_last_step(plan: Plan) -> None:
    """The second call of a training counts on from the step that the first one reached, and changes the weights."""
    material = Material(noise_clips(), noise_texts, None)
    name = "transformer.layers.0.mlp.up_proj.weight"

    first = train(plan, material, Steps(1))
    before = weights(plan)[name]
    second = train(plan, material, Steps(2))

    assert (first, second) == (1, 3)
    assert not torch.equal(weights(plan)[name], before)


def test_a_step_has_the_same_examples_every_time() -> None:
    """A step's examples depend on the step only, so that resuming repeats and skips nothing."""
    examples = Examples(noise_clips(), noise_texts, shares=TURBO_SHARES, reference_frames=33)

    first = [example.prompt + str(example.target.sum()) for example in draw_batch(examples, 11, 4)]
    again = [example.prompt + str(example.target.sum()) for example in draw_batch(examples, 11, 4)]
    other = [example.prompt + str(example.target.sum()) for example in draw_batch(examples, 12, 4)]

    assert first == again
    assert first != other


def test_base_starts_from_turbo(plan: Plan) -> None:
    """Base's training starts from the weights that turbo's has reached."""
    train(plan, Material(noise_clips(), noise_texts, None), Steps(2))

    base = prepare(replace(plan, variant="base"))

    turbo = weights(plan)
    assert base.steps == 0
    assert all(torch.equal(value, turbo[name]) for name, value in base.networks.state_dict().items())


def test_from_scratch_forgets_the_weights(plan: Plan) -> None:
    """Starting from scratch keeps the checkpoint's shapes and its silence, and no trained weight."""
    trained = Networks.load(plan.checkpoint)

    fresh = prepare(replace(plan, from_scratch=True)).networks

    assert torch.equal(fresh.silence, trained.silence)
    name = "transformer.layers.0.mlp.up_proj.weight"
    assert fresh.state_dict()[name].shape == trained.state_dict()[name].shape
    assert not torch.equal(fresh.state_dict()[name], trained.state_dict()[name])


def test_guidance_moves_the_target_away_from_the_unconditional(plan: Plan) -> None:
    """With a guidance scale of 1 the loss is plain flow matching; above, the target differs where conditions do."""
    training = prepare(plan)
    frames = training.networks.heard_frames
    examples = Examples(noise_clips(), noise_texts, shares=TURBO_SHARES, reference_frames=frames)
    batch = Batch.of(draw_batch(examples, 1, 4), training.networks, load_tokenizer(plan.checkpoint))

    def losses(guidance: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return training_losses(training.networks, training.average, batch, guidance=guidance, generator=generator)[0]

    assert torch.equal(losses(1.0), losses(1.0))
    assert not torch.allclose(losses(1.0), losses(3.0))


def test_training_learns_a_constant(plan: Plan) -> None:
    """The loss of music that is always the same falls."""
    clips = noise_clips()
    clips.mix[:] = 3
    training = prepare(replace(plan, from_scratch=True, guidance=1.0))
    frames = training.networks.heard_frames
    examples = Examples(clips, noise_texts, shares={"text2music": 1.0}, reference_frames=frames)
    tokenizer = load_tokenizer(plan.checkpoint)

    losses = [
        float(training.step(Batch.of(draw_batch(examples, step, 2), training.networks, tokenizer), 1.0)[0].mean())
        for step in range(20)
    ]

    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_an_export_is_a_pipeline_that_plays(plan: Plan, tmp_path: Path) -> None:
    """The exported folder loads with plain from_pretrained, says its variant, has the trained weights, and plays."""
    train(plan, Material(noise_clips(), noise_texts, None), Steps(2))

    folder = export(plan.work, tmp_path / "exported", plan.checkpoint, "turbo")

    pipeline = AceStepPipeline.from_pretrained(folder)
    assert pipeline.is_turbo
    assert pipeline.transformer.config.model_version == "turbo"
    trained = weights(plan)["transformer.layers.0.mlp.up_proj.weight"]
    assert torch.allclose(pipeline.transformer.layers[0].mlp.up_proj.weight, trained, rtol=2**-6, atol=0)
    assert play(folder).shape == (2, 480_000)


def test_exporting_nothing_names_the_missing_state(plan: Plan, tmp_path: Path) -> None:
    """Without a training, the export says which file is missing."""
    with pytest.raises(FileNotFoundError, match=r"transformer-turbo\.pt is missing"):
        export(plan.work, tmp_path / "exported", plan.checkpoint, "turbo")


def test_the_folded_embedding_changes_nothing(checkpoint: Path) -> None:
    """Without the embedding of t - r, the transformer gives the velocities that it gave with it."""
    transformer = AceStepTransformer1DModel.from_pretrained(checkpoint / "transformer", dtype=torch.float32).eval()
    width = transformer.config.encoder_hidden_size
    times = torch.tensor([0.9, 0.2])
    inputs = (torch.randn(2, 20, 64), times, times, torch.randn(2, 5, width), torch.randn(2, 20, 128))

    with torch.no_grad():
        before = transformer(*inputs).sample
        fold_second_time(transformer)
        after = transformer(*inputs).sample

    assert torch.allclose(before, after, atol=1e-4)
    assert all(not parameter.any() for parameter in transformer.time_embed_r.parameters())


def test_seven_bits_are_bfloat16() -> None:
    """Rounding to bfloat16's bits gives bfloat16's values, and to fewer bits at most half a step more."""
    layer = torch.nn.Linear(50, 50)
    exact = layer.weight.detach().clone()

    round_weights(layer, 7)
    seven = layer.weight.detach().clone()
    round_weights(layer, 5)

    assert torch.equal(seven, exact.bfloat16().float())
    assert torch.allclose(layer.weight, exact, rtol=2**-6 + 2**-8, atol=0)
    assert not torch.equal(layer.weight, seven)


def test_impossible_bits_are_refused() -> None:
    """A number of bits that bfloat16 cannot hold is an error that says what is allowed."""
    with pytest.raises(ValueError, match="bits: 8 is not from 1 to 7"):
        round_weights(torch.nn.Linear(2, 2), 8)

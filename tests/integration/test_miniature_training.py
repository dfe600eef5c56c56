"""The toy model's training: it learns, goes on where it stopped, and its export is a pipeline that plays the same."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AceStepPipeline, AceStepTransformer1DModel
from torch.utils._python_dispatch import TorchDispatchMode

from miniature.batches import Batches, Texts
from miniature.compact import fold_second_time, round_weights
from miniature.conditioning import Networks, load_tokenizer
from miniature.export import export, play
from miniature.flow import Inputs, distillation_losses, matching_losses
from miniature.lyric_heads import HEADS, alignment_loss, attention_read
from miniature.tasks import BASE_SHARES, Examples
from miniature.transformer import Material, Plan, Training, averaged, prepare, state_file, train
from tests.support.miniature_clips import NoiseClips, Steps, noise_clips, noise_texts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def plan(checkpoint: Path, tmp_path: Path) -> Plan:
    return Plan("base", tmp_path / "work", checkpoint, batch=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


def weights(plan: Plan) -> dict[str, torch.Tensor]:
    return averaged(Networks.load(plan.checkpoint), state_file(plan.work, plan.variant)).state_dict()


def noise_batches(plan: Plan, clips: NoiseClips | None = None, shares: Mapping[str, float] = BASE_SHARES) -> Batches:
    """Batches of the noise data set, or of other clips."""
    networks = Networks.load(plan.checkpoint)
    examples = Examples(
        clips or noise_clips(), noise_texts, shares=shares, reference_frames=networks.heard_frames, covers=True
    )
    return Batches(examples, networks, Texts(load_tokenizer(plan.checkpoint)), plan.batch)


def step(training: Training, batches: Batches) -> torch.Tensor:
    return training.step(Inputs.drawn(batches[training.steps], training.steps), 1.0)


def test_a_resumed_training_is_the_uninterrupted_one(plan: Plan, tmp_path: Path) -> None:
    """Two steps, a save and one more step give, bit by bit, the weights of three steps at once."""
    batches = noise_batches(plan)
    whole = prepare(replace(plan, work=tmp_path / "whole"))

    def steps(training: Training, count: int) -> None:
        for _ in range(count):
            step(training, batches)
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


@pytest.mark.long
def test_each_call_goes_on_from_the_last_step(plan: Plan) -> None:
    """The second call of a training counts on from the step that the first one reached, and changes the weights."""
    material = Material(noise_clips(), noise_texts, None)
    name = "transformer.layers.0.mlp.up_proj.weight"

    first = train(plan, material, Steps(1))
    before = weights(plan)[name]
    second = train(plan, material, Steps(2))

    assert (first, second) == (1, 3)
    assert not torch.equal(weights(plan)[name], before)


def test_a_step_has_the_same_batch_in_every_process(plan: Plan) -> None:
    """A step's batch depends on the step only, whichever process draws it, so that resuming repeats and skips nothing."""
    batches = noise_batches(plan)

    elsewhere = list(islice(batches.endless(11, 2, torch.device("cpu")), 2))

    for drawn, own in zip(elsewhere, (batches[11], batches[12]), strict=True):
        assert all(torch.equal(first, second) for first, second in zip(drawn, own, strict=True))
    assert not torch.equal(elsewhere[0].prompts, elsewhere[1].prompts)


def test_covers_go_through_the_codes(plan: Plan) -> None:
    """The sources of covers, and no others, are what the codes make of them."""
    batches = noise_batches(plan, shares={"cover": 0.5, "repaint": 0.5})
    batch = next(batch for batch in map(batches.__getitem__, range(50)) if len(batch.covers) == 1)

    coded = batch.with_covers_coded(lambda latents: latents * 0 + 7)

    cover = int(batch.covers[0])
    assert (coded.source[cover] == 7).all()
    assert torch.equal(coded.source[1 - cover], batch.source[1 - cover])


@pytest.mark.long
def test_turbo_learns_what_base_plays_with_guidance(plan: Plan) -> None:
    """Turbo starts from base's weights, learns to give its guided velocity, and leaves its encoders alone."""
    train(plan, Material(noise_clips(), noise_texts, None), Steps(2))
    base = weights(plan)
    turbo = prepare(replace(plan, variant="turbo"))
    started = {name: value.clone() for name, value in turbo.networks.state_dict().items()}
    batches = noise_batches(plan)

    losses = [float(step(turbo, batches).mean()) for _ in range(8)]

    assert all(torch.equal(value, base[name]) for name, value in started.items())
    assert sum(losses[-3:]) < sum(losses[:3])
    for name, value in turbo.networks.state_dict().items():
        assert name.startswith("transformer.") or torch.equal(value, base[name]), name


def test_turbo_needs_base(plan: Plan) -> None:
    """Without base's training, turbo's says what to do first."""
    with pytest.raises(FileNotFoundError, match="train `transformer --variant base` first"):
        prepare(replace(plan, variant="turbo"))


def test_from_scratch_forgets_the_weights(plan: Plan) -> None:
    """Starting from scratch keeps the checkpoint's shapes and its silence, and no trained weight."""
    trained = Networks.load(plan.checkpoint)

    fresh = prepare(replace(plan, from_scratch=True)).networks

    assert torch.equal(fresh.silence, trained.silence)
    name = "transformer.layers.0.mlp.up_proj.weight"
    assert fresh.state_dict()[name].shape == trained.state_dict()[name].shape
    assert not torch.equal(fresh.state_dict()[name], trained.state_dict()[name])


def test_guidance_moves_the_target_away_from_the_unconditional(plan: Plan) -> None:
    """At a guidance scale of 1 a student like its teacher has nothing to learn; above, it has."""
    networks = Networks.load(plan.checkpoint)
    inputs = Inputs.drawn(noise_batches(plan)[1], 1)

    plain = distillation_losses(networks, networks, inputs, 1.0).detach()
    guided = distillation_losses(networks, networks, inputs, 3.0).detach()

    assert float(plain.max()) < 1e-4
    assert float(guided.min()) > 1e-3


class NoValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises an error where a tensor's value is asked for, which a CUDA graph cannot do."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(asked in name for asked in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.")):
            raise AssertionError(f"{name} asks for a value")
        return func(*args, **(kwargs or {}))


def test_a_step_can_be_a_cuda_graph(plan: Plan) -> None:
    """Neither variant's losses nor that of alignment nor their gradients ask for a tensor's value."""
    networks = Networks.load(plan.checkpoint)
    inputs = Inputs.drawn(noise_batches(plan)[1], 1)
    sung = torch.ones(*inputs.music.shape[:2], inputs.lyrics.shape[1], dtype=torch.bool)

    with NoValues():  # type: ignore[no-untyped-call]
        with attention_read(networks.transformer, HEADS) as read:
            matching = matching_losses(networks, inputs)
        losses = matching + distillation_losses(networks, networks, inputs, 3.0)
        torch.autograd.backward(losses.mean() + alignment_loss(read, sung))

    assert networks.transformer.proj_out_conv.weight.grad is not None


@pytest.mark.long
def test_training_learns_a_constant(plan: Plan) -> None:
    """The loss of music that is always the same falls."""
    clips = noise_clips()
    clips.mix[:] = 3
    training = prepare(replace(plan, from_scratch=True))
    batches = noise_batches(plan, clips, {"text2music": 1.0})

    losses = [float(step(training, batches).mean()) for _ in range(20)]

    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.long
def test_an_export_is_a_pipeline_that_plays(plan: Plan, tmp_path: Path) -> None:
    """The exported folder loads with plain from_pretrained, says its variant, has the trained weights, and plays."""
    train(plan, Material(noise_clips(), noise_texts, None), Steps(2))

    folder = export(plan.work, tmp_path / "exported", plan.checkpoint, "base")

    pipeline = AceStepPipeline.from_pretrained(folder)
    assert not pipeline.is_turbo
    assert pipeline.transformer.config.model_version == "base"
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
    with pytest.raises(ValueError, match="bits: 11 is not from 1 to 10"):
        round_weights(torch.nn.Linear(2, 2), 11)

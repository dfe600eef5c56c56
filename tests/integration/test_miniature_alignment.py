"""How the toy model's heads learn where lyrics are sung: syllables' tokens and times, the loss, and the check."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AceStepTransformer1DModel

from miniature.batches import Batches, Texts, batch_of
from miniature.captions import full_request
from miniature.conditioning import Networks, Tokens, load_tokenizer
from miniature.export import export
from miniature.flow import HIGHEST_SUNG, Inputs
from miniature.lyric_heads import HEADS, TimingCheck, alignment_loss, attention_read, syllable_errors
from miniature.pieces import Facts, compose
from miniature.singing import lyrics_tokens, sung_frames, sung_syllables, tokens_of
from miniature.tasks import HELD_OUT, Example, Examples
from miniature.transformer import Material, Plan, prepare, train
from serve_app.engine.ace_step.alignment_heads import alignment_heads
from serve_app.engine.ace_step.lyric_attention import head_weights
from tests.support.miniature_clips import FRAMES, NoiseClips, Steps, noise_clips, noise_texts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PATCH_S = 0.08


def sung_piece() -> Facts:
    """A piece with a voice."""
    return next(facts for seed in range(100) if (facts := compose(seed).facts).voice)


def sung_clips() -> NoiseClips:
    """Clips of which the first four sing two syllables: two for training, and two that are held out.

    Their latents are constant while one is sung, so that a model can hear which one.
    """
    clips = noise_clips(training=2)
    clips.mix[:, :128] = 1
    clips.mix[:, 128:] = -1
    words = "[verse]\npa mi"
    syllables = (("pa", 0.0), ("mi", 5.12))
    sung = [replace(facts, voice=True, lyrics=words, syllables=syllables) for facts in clips.facts[:4]]
    return replace(clips, facts=[*sung, *clips.facts[4:]])


def four_syllables() -> NoiseClips:
    """Clips of which the first sings four syllables."""
    clips = sung_clips()
    syllables = (("pa", 0.0), ("mi", 2.56), ("so", 5.12), ("pu", 7.68))
    sung = [replace(facts, bpm=20, lyrics="[verse]\npa mi\nso pu", syllables=syllables) for facts in clips.facts[:1]]
    return replace(clips, facts=[*sung, *clips.facts[1:]])


def spread(sung: torch.Tensor) -> torch.Tensor:
    """A head's attention (1, patches, tokens) of which the tokens that are sung get most, and the others a little."""
    weights = sung + 0.01
    return (weights / weights.sum(1, keepdim=True))[None]


def sung_examples(clips: NoiseClips, networks: Networks) -> Examples:
    return Examples(clips, noise_texts, shares={"text2music": 1.0}, reference_frames=networks.heard_frames)


@pytest.fixture
def plan(checkpoint: Path, tmp_path: Path) -> Plan:
    return Plan("base", tmp_path / "work", checkpoint, batch=2, align=True)


@pytest.fixture
def networks(plan: Plan) -> Networks:
    return Networks.load(plan.checkpoint)


@pytest.fixture
def texts(plan: Plan) -> Texts:
    return Texts(load_tokenizer(plan.checkpoint))


def test_syllables_are_found_in_the_text(texts: Texts) -> None:
    """Each sung syllable has its letters' place in the text, the tokens of these letters, and lasts until the next one."""
    facts = sung_piece()
    _, text = full_request(facts).texts()
    offsets = Tokens(texts.tokenizer, [text], 2048).offsets[0]

    syllables = sung_syllables(facts, text)

    assert [(text[slice(*each.place)], each.start_s) for each in syllables] == list(facts.syllables)
    assert [each.end_s for each in syllables[:-1]] == [each.start_s for each in syllables[1:]]
    assert syllables[-1].end_s > syllables[-1].start_s
    for each in syllables:
        tokens = tokens_of(each, offsets)
        assert text[slice(*each.place)] in text[offsets[tokens[0]][0] : offsets[tokens[-1]][1]]
    lyrics = lyrics_tokens(text, offsets)
    assert text[offsets[lyrics.start][0] : offsets[lyrics.stop - 1][1]] == facts.lyrics


def test_frames_sing_the_tokens_of_their_syllable(texts: Texts) -> None:
    """In the middle of a syllable, its tokens and no others are sung; after the last one, none are."""
    facts = replace(sung_piece(), lyrics="[verse]\nla bo", syllables=(("la", 0.0), ("bo", 1.0)), bpm=60)
    _, text = full_request(facts).texts()
    offsets = Tokens(texts.tokenizer, [text], 2048).offsets[0]

    sung = sung_frames(sung_syllables(facts, text), offsets, 50)

    def letters(frame: int) -> str:
        return "".join(text[slice(*offsets[token])] for token in np.flatnonzero(sung[frame])).strip()

    assert (letters(0), letters(24)) == ("la", "la")
    assert (letters(25), letters(36)) == ("bo", "bo")
    assert letters(40) == ""


def test_the_attention_read_is_the_layers(networks: Networks, texts: Texts) -> None:
    """What is read of a pass is the attention that Sophia reads in the same layer, for the lyrics without padding."""
    example = sung_examples(sung_clips(), networks).sung(0, np.random.default_rng(0))
    inputs = inputs_of([example], networks, texts)
    heard = {}

    def keep(_layer: torch.nn.Module, _arguments: tuple[object, ...], named: dict[str, torch.Tensor]) -> None:
        heard["hidden"] = named["hidden_states"]
        heard["conditions"] = named["encoder_hidden_states"]

    layer = networks.transformer.layers[1].cross_attn
    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad(), attention_read(networks.transformer, {1: (1, 3)}) as read:
        networks.velocity(inputs.noisy, inputs.times, inputs.conditions(networks), inputs.context)
        expected = list(head_weights(layer, heard["hidden"], heard["conditions"], (1, 3)))
    hook.remove()

    assert len(read) == 1
    for number, weights in enumerate(expected):
        torch.testing.assert_close(read[0][0, number].exp().T, weights)


def test_the_loss_is_that_of_the_attention_on_the_syllable() -> None:
    """It is the negative logarithm of what the tokens of the sung syllable get together; patches without singing do not count."""
    attention = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.7, 0.1, 0.1, 0.1]])
    sung = torch.zeros(1, 4, 3, dtype=torch.bool)
    sung[0, :2, 1:] = True

    loss = alignment_loss([attention.log()[None, None]], sung)

    assert float(loss) == pytest.approx(-np.log(0.5))


def test_aligned_batches_hear_the_voice(plan: Plan, networks: Networks, texts: Texts) -> None:
    """They are whole sung clips at low noise with all of their conditions, and say which tokens each frame sings."""
    batches = Batches(sung_examples(sung_clips(), networks), networks, texts, 4, sung=1.0)

    inputs = Inputs.drawn(batches[3], 3)

    assert inputs.aligned
    assert inputs.sung.shape == (2, 256, inputs.lyrics.shape[1])
    assert float(inputs.times.max()) <= HIGHEST_SUNG
    assert not inputs.dropped.any()


def test_without_sung_clips_there_is_nothing_to_align(networks: Networks, texts: Texts) -> None:
    """A data set without a voice is an error that says what is missing."""
    batches = Batches(sung_examples(noise_clips(), networks), networks, texts, 4, sung=1.0)

    with pytest.raises(ValueError, match="no clip has a voice"):
        batches[0]


def test_planted_attention_finds_the_syllables(networks: Networks, texts: Texts) -> None:
    """Heads that attend to the syllable that is sung find it within a patch; heads that attend to the next one do not."""
    example = sung_examples(four_syllables(), networks).sung(0, np.random.default_rng(0))
    offsets = Tokens(texts.tokenizer, [example.lyrics], 2048).offsets[0]
    sung = torch.from_numpy(sung_frames(example.syllables, offsets, FRAMES))[::2].float()
    late = sung.roll(16, dims=0)

    right = syllable_errors(example, offsets, spread(sung))
    wrong = syllable_errors(example, offsets, spread(late))

    assert right.shape == (4,)
    assert right.max() < 1.5 * PATCH_S
    assert np.median(wrong) > 1.0


@pytest.mark.long
def test_steps_move_attention_to_the_syllables(plan: Plan, networks: Networks, texts: Texts) -> None:
    """After some steps on aligned batches, the heads pay a held-out clip's syllables several times the attention."""
    clips = sung_clips()
    examples = sung_examples(clips, networks)
    check = TimingCheck([examples.sung(len(clips.facts) - HELD_OUT, np.random.default_rng(0))], networks, texts)
    batches = Batches(examples, networks, texts, plan.batch, sung=1.0)
    training = prepare(plan)
    before = check.timing(training.networks, 0.125, HEADS)

    for number in range(20):
        training.step(Inputs.drawn(batches[number], number), 1.0)
    after = check.timing(training.networks, 0.125, HEADS)

    assert after.attention > 3 * before.attention


@pytest.mark.long
def test_the_stage_shows_its_errors_and_its_export_names_the_heads(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With alignment, the stage prints how far syllables are off, and the export's config names the heads; else neither."""
    material = Material(sung_clips(), noise_texts, None)
    plain_plan = replace(plan, work=tmp_path / "plain", align=False)

    train(plan, material, Steps(4))
    aligned_lines = capsys.readouterr().out
    train(plain_plan, material, Steps(1))
    plain_lines = capsys.readouterr().out
    aligned = export(plan.work, tmp_path / "exported", plan.checkpoint, "base")
    plain = export(plain_plan.work, tmp_path / "exported-plain", plan.checkpoint, "base")

    heads = {layer: tuple(numbers) for layer, numbers in HEADS.items()}
    assert "s off in the median" in aligned_lines
    assert alignment_heads(AceStepTransformer1DModel.from_pretrained(aligned / "transformer")) == heads
    assert "s off in the median" not in plain_lines
    assert alignment_heads(AceStepTransformer1DModel.from_pretrained(plain / "transformer")) is None


def inputs_of(examples: list[Example], networks: Networks, texts: Texts) -> Inputs:
    """The inputs of a batch of examples, always with the same noise."""
    return Inputs.drawn(batch_of(examples, networks.silence.numpy(), networks.heard_frames, texts), 0)

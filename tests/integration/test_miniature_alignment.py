"""How the toy model's heads learn where lyrics are sung: syllables' tokens and times, the loss, and the check."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AceStepTransformer1DModel

from miniature import aligning
from miniature.batches import CROP_FRAMES, Texts, batch_of
from miniature.captions import full_request, text_pair
from miniature.conditioning import Networks, Tokens, load_tokenizer
from miniature.export import export
from miniature.flow import Inputs
from miniature.lyric_heads import HEADS, alignment_loss, attention_read, syllable_errors
from miniature.lyrics import CONSONANTS, VOWELS
from miniature.pieces import Facts, compose
from miniature.singing import Syllable, lyrics_tokens, sung_between, sung_frames, sung_syllables, tokens_of
from miniature.sounds import UNASKED, SoundProbe, frame_sounds, token_sounds
from miniature.spelling import teach
from miniature.tasks import Example, Examples
from miniature.transformer import Material, Plan, train
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
    return Plan("base", tmp_path / "work", checkpoint, batch=2)


@pytest.fixture
def material() -> aligning.Material:
    return aligning.Material(sung_clips(), noise_texts, None)


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


def test_lessons_hear_the_voice(material: aligning.Material, plan: Plan) -> None:
    """Their first examples are sung, with little noise; the others have none to find. The same step has the same lesson."""
    lessons = aligning.Lessons.of(plan.checkpoint, material)

    lesson = lessons.lesson(3)

    sung = lesson.inputs.sung.any(2).any(1)
    assert sung[: aligning.SUNG].all()
    assert not sung[aligning.SUNG :].any()
    assert float(lesson.inputs.times[: aligning.SUNG].max()) <= aligning.HIGHEST_SUNG
    assert lesson.frames.shape == (aligning.SUNG, CROP_FRAMES, 6)
    assert lesson.tokens.shape == (aligning.SUNG, lesson.inputs.lyrics.shape[1], 6)
    assert torch.equal(lessons.lesson(3).inputs.noisy, lesson.inputs.noisy)


def test_a_part_of_a_clip_has_the_syllables_that_are_sung_there() -> None:
    """Their times count from the part's start; those before and after it are left out."""
    syllables = [Syllable((0, 2), 0.0, 1.0), Syllable((2, 4), 1.0, 2.0), Syllable((4, 6), 2.0, 3.0)]

    part = sung_between(syllables, 1.5, 0.5)

    assert part == (Syllable((2, 4), 0.0, 0.5),)


def test_without_sung_clips_there_is_nothing_to_align(networks: Networks) -> None:
    """A data set without a voice is an error that says what is missing."""
    with pytest.raises(ValueError, match="no clip has a voice"):
        sung_examples(noise_clips(), networks).draw_sung(np.random.default_rng(0))


def test_sounds_are_those_of_the_syllables_around(texts: Texts) -> None:
    """A frame and a token of a syllable have its consonant and vowel, between those of the one before and the one after."""
    facts = replace(sung_piece(), lyrics="[verse]\nla bo", syllables=(("la", 0.0), ("bo", 1.0)), bpm=60)
    _, text = full_request(facts).texts()
    offsets = Tokens(texts.tokenizer, [text], 2048).offsets[0]
    syllables = sung_syllables(facts, text)
    la = (CONSONANTS.index("l"), VOWELS.index("a"))
    bo = (CONSONANTS.index("b"), VOWELS.index("o"))
    none = (UNASKED, UNASKED)

    frames = frame_sounds(text, syllables, 50)
    tokens = token_sounds(text, syllables, offsets)

    assert tuple(frames[0]) == (*none, *la, *bo)
    assert tuple(frames[30]) == (*la, *bo, *none)
    assert set(frames[45]) == {UNASKED}
    for syllable, expected in zip(syllables, ((*none, *la, *bo), (*la, *bo, *none)), strict=True):
        assert all(tuple(tokens[token]) == expected for token in tokens_of(syllable, offsets))
    assert set(tokens[0]) == {UNASKED}


@pytest.mark.long
def test_the_lyric_encoder_learns_its_syllables(plan: Plan, networks: Networks) -> None:
    """Afterwards a probe tells the syllables of lyrics that were not learnt from, much better than by chance."""
    probe = SoundProbe(networks.condition_encoder.config.hidden_size)
    tokenizer = load_tokenizer(plan.checkpoint)
    facts = [known for seed in range(400) if (known := compose(seed).facts).voice]
    teach(networks, probe, facts[10:], text_pair, tokenizer)
    words = [text_pair(known, np.random.default_rng(0))[1] for known in facts[:10]]
    tokens = Tokens(tokenizer, words, 2048)
    sounds = [
        token_sounds(text, sung_syllables(known, text), offsets)
        for known, text, offsets in zip(facts, words, tokens.offsets, strict=False)
    ]

    with torch.no_grad():
        embedded = networks.text_encoder.get_input_embeddings()(tokens.ids)
        states = networks.condition_encoder.lyric_encoder(inputs_embeds=embedded, attention_mask=tokens.mask)
        loss = float(probe.loss(states, torch.from_numpy(np.stack(sounds))))

    assert loss < 0.5 * np.log(16 * 5) / 2


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
def test_steps_move_attention_to_the_syllables(plan: Plan, material: aligning.Material) -> None:
    """After some steps, the heads pay a held-out clip's syllables several times the attention, and the loss has fallen."""
    lessons = aligning.Lessons.of(plan.checkpoint, material)
    check = lessons.check(material.clips)
    training = aligning.prepare(plan.work, plan.checkpoint, material)
    before = check.timing(training.pupil.networks, 0.125, HEADS)

    losses = [training.step(lessons.lesson(number), 0.5) for number in range(20)]
    after = check.timing(training.pupil.networks, 0.125, HEADS)

    assert after.attention > 3 * before.attention
    assert losses[-1]["attention"] < losses[0]["attention"]


@pytest.mark.long
def test_a_resumed_training_goes_on(plan: Plan, material: aligning.Material) -> None:
    """A step after a save and a resumption gives, bit by bit, the weights that it gives without."""
    lessons = aligning.Lessons.of(plan.checkpoint, material)
    training = untaught(plan)
    training.step(lessons.lesson(0), 1.0)
    training.save()
    resumed = aligning.prepare(plan.work, plan.checkpoint, material)

    for each in (training, resumed):
        each.step(lessons.lesson(1), 1.0)

    assert resumed.steps == 2
    for name, value in training.pupil.state_dict().items():
        assert torch.equal(value, resumed.pupil.state_dict()[name]), name


def test_only_the_transformer_and_the_lyric_encoder_learn(plan: Plan, material: aligning.Material) -> None:
    """The other parts are base's, too."""
    training = untaught(plan)
    before = {name: value.clone() for name, value in training.pupil.networks.state_dict().items()}

    training.step(aligning.Lessons.of(plan.checkpoint, material).lesson(0), 1.0)

    after = training.pupil.networks.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    learns = ("transformer.", "condition_encoder.lyric_encoder.")
    assert changed
    assert all(name.startswith(learns) for name in changed)


@pytest.mark.long
def test_the_stage_shows_its_errors_and_its_export_names_the_heads(
    plan: Plan, material: aligning.Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stage prints how far syllables are off, and the config of the turbo that is exported names the heads; base's does not."""
    train(plan, Material(material.clips, noise_texts, None), Steps(1))
    aligning.train(plan.work, plan.checkpoint, material, Steps(2))
    lines = capsys.readouterr().out
    turbo = export(plan.work, tmp_path / "exported", plan.checkpoint, "turbo")
    base = export(plan.work, tmp_path / "exported", plan.checkpoint, "base")

    heads = {layer: tuple(numbers) for layer, numbers in HEADS.items()}
    assert "s off in the median" in lines
    assert alignment_heads(AceStepTransformer1DModel.from_pretrained(turbo / "transformer")) == heads
    assert alignment_heads(AceStepTransformer1DModel.from_pretrained(base / "transformer")) is None


def untaught(plan: Plan) -> aligning.Training:
    """A training whose lyric encoder has not learnt alone."""
    file = aligning.state_file(plan.work)
    return aligning.Training(aligning.Pupil(Networks.load(plan.checkpoint)), Networks.load(plan.checkpoint), file)


def inputs_of(examples: list[Example], networks: Networks, texts: Texts) -> Inputs:
    """The inputs of a batch of examples, always with the same noise."""
    return Inputs.drawn(batch_of(examples, networks.silence.numpy(), networks.heard_frames, texts), 0)

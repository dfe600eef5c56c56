"""The toy model's training data: latents, pieces, their texts, and a data set in a folder."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import AceStepPipeline

from miniature import captions, dataset
from miniature.clips import CLIP_SAMPLES, render_clip, render_stems
from miniature.latents import SAMPLE_RATE, SAMPLES, analyse
from miniature.mixing import LINEAR, silence
from miniature.pieces import CLIP_S, INSTRUMENT_TRACKS, TRACKS, Facts, compose
from miniature.stage import Session
from miniature.synthesizer import LOUDNESS
from miniature.tasks import HELD_OUT
from miniature.voice import syllables

SEEDS = range(60)
RENDERED = range(16)


def facts_where(**wanted: object) -> Facts:
    """The facts of the first seed that has these values."""
    for seed in range(1000):
        facts = compose(seed).facts
        if all(getattr(facts, name) == value for name, value in wanted.items()):
            return facts
    raise LookupError(f"no seed below 1,000 has {wanted}")


def tone(frequency_hz: float) -> np.ndarray:
    """A second of a sine in both channels: (2, samples)."""
    wave = 0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    return np.stack([wave, wave]).astype(np.float32)


def test_a_low_tone_is_in_the_waveform_numbers_only() -> None:
    """A tone below 1.2 kHz moves the waveform's numbers and leaves the upper bands silent."""
    latents = analyse(tone(440))[2:-2]
    assert (latents[:, :LINEAR] ** 2).sum(1).min() > 1
    assert np.abs(latents[:, LINEAR:] - silence(1)[:, LINEAR:]).max() < 0.2


def test_a_high_tone_is_in_its_band_only() -> None:
    """A tone of 2.7 kHz is heard in the second of the five bands, in both halves of a latent."""
    latents = analyse(tone(2700))[2:-2]
    louder = (latents - silence(1))[:, LINEAR:].mean(0)
    assert np.abs(latents[:, :LINEAR]).max() < 0.01
    assert sorted(np.argsort(louder)[-2:].tolist()) == [1, 6]


def test_the_waveform_survives_the_latents() -> None:
    """The inverse MDCT of the first 54 numbers is the waveform below 1.2 kHz, to 25 dB."""
    audio = (tone(220) + tone(330)) / 2
    latents = analyse(audio)
    with np.load(Path(dataset.__file__).with_name("latent_basis.npz")) as basis:
        coefficients = latents[:, :LINEAR] @ np.linalg.pinv(basis["P"])
    time = np.arange(2 * SAMPLES)[:, None] + 0.5
    cosines = np.cos(np.pi / SAMPLES * (time + SAMPLES / 2) * (np.arange(96) + 0.5))
    synthesis = np.sqrt(2 / SAMPLES) * np.sin(np.pi * time / (2 * SAMPLES)) * cosines
    rebuilt = np.zeros(SAMPLES * (len(latents) + 1))
    for frame, values in enumerate(coefficients):
        rebuilt[frame * SAMPLES : (frame + 2) * SAMPLES] += synthesis @ values
    inner = slice(2 * SAMPLES, 20 * SAMPLES)
    heard = rebuilt[SAMPLES // 2 :][inner]
    wanted = audio[0][inner]
    assert ((heard - wanted) ** 2).sum() < 10**-2.5 * (wanted**2).sum()


def test_latents_need_stereo() -> None:
    """One channel alone is refused with its shape."""
    with pytest.raises(ValueError, match=r"\(1, 48000\).*\(2, samples\)"):
        analyse(tone(440)[:1])


def test_a_seed_gives_one_clip() -> None:
    """The same seed gives the same facts and the same audio, another seed other audio."""
    first = render_clip(compose(3).facts)
    assert compose(3).facts == compose(3).facts
    assert np.array_equal(first, render_clip(compose(3).facts))
    assert not np.array_equal(first, render_clip(compose(4).facts))


def test_stems_add_up_to_the_clip() -> None:
    """The tracks' sum is the clip exactly, and as loud as all clips while it plays."""
    for seed in RENDERED:
        facts = compose(seed).facts
        stems = render_stems(facts)
        audio = render_clip(facts)
        assert set(stems) <= set(TRACKS)
        assert audio.shape == (2, CLIP_SAMPLES)
        assert np.array_equal(audio, np.sum(list(stems.values()), axis=0))
        played = audio[:, : facts.piece_s * SAMPLE_RATE]
        assert np.sqrt((played**2).mean()) == pytest.approx(LOUDNESS, rel=1e-3)
        assert np.abs(audio).max() < 1.5  # as floats, samples may exceed 1


def test_tracks_are_those_of_the_facts() -> None:
    """Drums, bass and voice have a track exactly where the facts say so; the instrument always has its own."""
    for seed in SEEDS:
        piece = compose(seed)
        tracks = set(piece.tracks)
        assert ("drums" in tracks) == piece.facts.drums
        assert ("bass" in tracks) == piece.facts.bass
        assert ("vocals" in tracks) == piece.facts.voice
        assert INSTRUMENT_TRACKS[piece.facts.instrument] in tracks


def test_something_begins_on_every_beat() -> None:
    """The instrument alone marks every beat, up to an ending's last chord."""
    for seed in SEEDS:
        piece = compose(seed)
        onsets = np.array([note.onset_s for note in piece.tracks[INSTRUMENT_TRACKS[piece.facts.instrument]]])
        beats = np.arange(0, min(onsets.max(), CLIP_S), 60 / piece.facts.bpm)
        assert np.abs(beats[:, None] - onsets).min(1).max() < 0.001


def test_an_ending_is_followed_by_silence() -> None:
    """A piece that ends in its clip is silent from half a second before its end; other clips play on."""
    for seed in RENDERED:
        facts = compose(seed).facts
        audio = render_clip(facts)
        if facts.ending:
            assert facts.piece_s <= CLIP_S
            assert np.abs(audio[:, int((facts.piece_s - 0.5) * SAMPLE_RATE) :]).max() == 0
        else:
            assert facts.piece_s > CLIP_S
            assert np.abs(audio[:, -SAMPLE_RATE:]).max() > 0.02


def test_the_lyrics_are_what_is_sung() -> None:
    """The syllables of the lyrics' lines are the sung ones, in order, each with its time."""
    facts = facts_where(voice=True)
    lines = facts.lyrics.split("\n")
    assert lines[0] == "[verse]"
    assert syllables(" ".join(lines[1:])) == [text for text, _ in facts.syllables]
    onsets = [onset_s for _, onset_s in facts.syllables]
    assert onsets == sorted(onsets)
    assert onsets[-1] < CLIP_S


def test_lyrics_of_clients_have_syllables() -> None:
    """Words with several vowels and final consonants are split at their vowels; words without one are left out."""
    assert syllables("Hello moon, shh") == ["he", "llo", "moon"]


def test_a_request_states_its_facts() -> None:
    """A random request names the instrument and, but for a few, tempo and key; drums, bass and voice always."""
    random = np.random.default_rng(1)
    untold = 0
    for seed in SEEDS:
        facts = compose(seed).facts
        request = captions.random_request(facts, random)
        assert facts.instrument in request.prompt
        assert ("drums" in request.prompt) == facts.drums
        assert ("bass" in request.prompt) == facts.bass
        assert ("vocal" in request.prompt or "voice" in request.prompt) == facts.voice
        assert (request.lyrics == facts.lyrics) or not facts.voice
        untold += request.bpm is None and f"{facts.bpm} bpm" not in request.prompt
    assert untold < len(SEEDS) / 4


def test_the_instrument_can_stay_unnamed() -> None:
    """A text for training with a reference does not name the instrument."""
    random = np.random.default_rng(1)
    for seed in SEEDS:
        facts = compose(seed).facts
        prompt, _ = captions.text_pair(facts, random, False)
        assert facts.instrument not in prompt


def test_texts_are_those_of_the_pipeline() -> None:
    """The texts equal those that diffusers' pipeline makes of the same request."""
    pipeline = AceStepPipeline.__new__(AceStepPipeline)
    for voice in (True, False):
        request = captions.full_request(facts_where(voice=voice))
        expected = pipeline._format_prompt(
            request.prompt,
            lyrics=request.lyrics,
            vocal_language=request.language,
            audio_duration=float(request.seconds),
            bpm=request.bpm,
            keyscale=request.keyscale,
            timesignature=request.timesignature,
        )
        assert request.texts() == expected


def test_held_out_descriptions_are_not_trained_on() -> None:
    """No clip for training can be described as a held-out one is, and a data set needs more clips than those."""
    chosen = list(dataset.chosen_clips(1000, seed=1))
    training = {dataset.described(facts) for facts in chosen[:-HELD_OUT]}
    held_out = {dataset.described(facts) for facts in chosen[-HELD_OUT:]}
    assert len(chosen) == 1000
    assert not training & held_out
    with pytest.raises(ValueError, match="clips is 100"):
        list(dataset.chosen_clips(100, seed=1))


@pytest.mark.long
def test_an_interrupted_data_set_is_finished_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that stops goes on where it stopped, and its latents are those of the clips; then it can be loaded."""
    clips = HELD_OUT + 3
    folder = tmp_path / "data"
    monkeypatch.setattr(dataset, "SAVE_EVERY", 50)
    session = Session(1.0)
    monkeypatch.setattr(Session, "running", property(lambda _: not (folder / "done.json").exists()))
    finished = dataset.build(folder, clips=clips, seed=5, processes=1, session=session)
    assert not finished
    with pytest.raises(FileNotFoundError, match=f"50 of {clips} clips"):
        dataset.load(folder)
    monkeypatch.setattr(Session, "running", True)
    assert dataset.build(folder, clips=clips, seed=5, processes=1, session=session)
    data = dataset.load(folder)
    for index in (2, clips - 1):
        clip = data.clip(index)
        exact = analyse(dataset.render(clip))
        assert data.mix.shape == (clips, 256, 64)
        assert np.abs(data.mix[index] - exact).max() < 0.02
        drums = data.stems["drums"][index, slice(10, 20)].astype(np.float32)
        assert np.array_equal(drums, silence(10).astype(np.float16)) != clip.facts.drums
    with pytest.raises(ValueError, match="choose another folder"):
        dataset.build(folder, clips=clips + 1, seed=5, processes=1, session=session)


def test_data_of_another_version_is_refused(tmp_path: Path) -> None:
    """Facts that their seeds no longer give are refused with the folder and a seed, when data is built further."""
    folder = tmp_path / "data"
    folder.mkdir()
    changed = asdict(replace(compose(7).facts, bpm=61))
    (folder / "plan.json").write_text(json.dumps({"clips": 101, "seed": 0}))
    (folder / "facts.json").write_text(json.dumps([changed]))
    with pytest.raises(ValueError, match=r"another version: seed 7 .*Delete it"):
        dataset.build(folder, clips=101, seed=0, processes=1, session=Session(1.0))


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    """Loading from an empty folder says which command makes the data."""
    with pytest.raises(FileNotFoundError, match="python -m miniature data"):
        dataset.load(tmp_path)

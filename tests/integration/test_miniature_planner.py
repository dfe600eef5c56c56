"""The toy model's planner: the packaged one does as captions say, and its training learns from songs and goes on."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import planner, planner_codes, songs, stage
from miniature.pieces import compose, compose_song
from miniature.planner_texts import Told, planned, told
from miniature.planner_vocabulary import tokenizer
from miniature.songs import Song
from serve_app import weights
from serve_app.config import ModelArgs
from serve_app.config.language_model import LanguageModelArgs
from serve_app.engine.planner.planner import QwenPlanner
from serve_app.engine.planner.protocol import Wishes
from serve_app.engine.planner.vocabulary import Vocabulary
from serve_app.music.plan import Plan
from serve_app.weights import planner_files
from tests.support.planners import check_many, loaded

EMBEDDED = ModelArgs(source="embedded", device="cpu")
SHORT_SONGS_SEED = 5_000_218
"""The first of two seeds whose songs are of 10 s."""
SONG = Song(compose_song(3, 40).facts, tuple(np.random.default_rng(0).choice([0, 9, 500, 63_999], 200).tolist()))


@pytest.fixture(scope="module")
def packaged(cache: Path) -> Iterator[QwenPlanner]:
    """The packaged planner."""
    loaded = QwenPlanner(
        "toy",
        ModelArgs(source="embedded", device="cpu"),
        LanguageModelArgs(source="embedded", rows=4, context=2048),
        cache,
    )
    loaded.load(lambda *progress: None)
    yield loaded
    loaded.close()


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    """A vocabulary with the codes of SONG."""
    random = np.random.default_rng(1)
    example = planned(SONG.facts, (), random)
    texts = [part for part in (*example.prompt, *example.answer) if isinstance(part, str)]
    tokenizer(texts, sorted(set(SONG.codes))).save(str(tmp_path / "tokenizer.json"))
    return Vocabulary(tmp_path)


def _plan(packaged: QwenPlanner, wishes: Wishes) -> Plan:
    return packaged.plan(wishes, lambda *progress: None, lambda: False)


def _naming(count: int) -> list[tuple[int, Told]]:
    """Requests for held-out songs that name tempo and key."""
    random = np.random.default_rng(5)
    asked = []
    for seed in range(songs.FIRST_SEED, songs.FIRST_SEED + songs.HELD_OUT_SONGS):
        facts = compose_song(seed, songs.song_length_s(seed)).facts
        request = told(facts, random)
        if str(facts.bpm) in request.caption and request.keyscale in request.caption:
            asked.append((facts.bpm, request))
    return asked[:count]


def test_named_tempos_and_keys_are_planned(packaged: QwenPlanner) -> None:
    """Of captions that name tempo and key, at least 95 % get plans with both."""
    asked = _naming(20)

    plans = [
        _plan(packaged, Wishes(caption=request.caption, lyrics=request.lyrics, thinking="metadata", seed=seed))
        for seed, (_, request) in enumerate(asked)
    ]

    as_asked = [
        (plan.bpm, plan.keyscale) == (bpm, request.keyscale) for plan, (bpm, request) in zip(plans, asked, strict=True)
    ]
    assert len(as_asked) == 20
    assert sum(as_asked) >= 19


def test_what_is_not_named_is_plausible(packaged: QwenPlanner) -> None:
    """A caption that names nothing gets a tempo that people play, one of 24 keys, and codes for the length that was asked for."""
    plan = _plan(packaged, Wishes(caption="music", lyrics="[Instrumental]", duration=4.0, thinking="codes", seed=2))

    assert 40 <= (plan.bpm or 0) <= 220
    assert (plan.keyscale or "").endswith(("major", "minor"))
    assert plan.language == "unknown"
    assert len(plan.codes[0]) == 20
    assert len(set(plan.codes[0])) > 5


def test_longer_lyrics_get_longer_songs(packaged: QwenPlanner) -> None:
    """Over several seeds, eight lines of lyrics get a longer song than one line, in the mean."""
    line = "bafi la gu mibo kume fela\n"
    means = []
    for lines in (1, 8):
        wishes = Wishes(
            caption="piano with vocals, 90 bpm, calm", lyrics="[verse]\n" + line * lines, thinking="metadata"
        )
        means.append(np.mean([_plan(packaged, replace(wishes, seed=seed)).duration for seed in range(6)]))

    assert means[1] > 1.5 * means[0]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.plans)])
def test_many_plans_are_valid(cache: Path, count: int) -> None:
    """Every plan parses, every value is in range, what is decided stays, and there are five codes a second. Prints the time."""
    check_many(loaded(cache, source="embedded", rows=64, context=2048), count)


def test_a_whole_song_begins_and_ends(vocabulary: Vocabulary) -> None:
    """A song of a seed has its length, starts with its first bar and has its ending; clips of the same seed are as before."""
    facts = compose_song(7, 33).facts

    assert (facts.piece_s, facts.ending, facts.starts_at_s) == (33, True, 0.0)
    assert compose(7) == compose(7)
    assert facts.key == compose(7).facts.key


def test_a_part_of_a_song_keeps_its_place(vocabulary: Vocabulary) -> None:
    """A crop's codes have the positions that they have in the song, and only a song's last codes are followed by the end."""
    random = np.random.default_rng(4)
    parts = [planner.crop(SONG, random) for _ in range(40)]

    rows = [
        planner.row(
            vocabulary,
            planned(part.facts, part.codes, random, ended=skipped + len(part.codes) == 5 * part.facts.piece_s),
            skipped,
        )
        for part, skipped in parts
    ]

    for (part, skipped), row in zip(parts, rows, strict=True):
        first = next(at for at, token in enumerate(row.tokens) if token in vocabulary.code_ids)
        assert row.positions[first] == first + skipped
        assert (row.tokens[-1] == vocabulary.end) == (skipped + len(part.codes) == 5 * part.facts.piece_s)
    assert {skipped for _, skipped in parts} > {0}


def test_a_resumed_training_is_the_uninterrupted_one(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, a save and one more step give, bit by bit, the weights of three steps at once."""
    monkeypatch.setattr(planner, "BATCH", 4)
    monkeypatch.setattr(planner, "HELD_OUT_SONGS", 0)
    examples = planner.Examples(vocabulary, [SONG])
    whole = planner.Training(tmp_path / "whole.pt", vocabulary)
    for step in range(3):
        whole.step(examples.batch(step), 1.0)
    first = planner.Training(tmp_path / "parts.pt", vocabulary)
    for step in range(2):
        first.step(examples.batch(step), 1.0)
    first.save()

    second = planner.Training(tmp_path / "parts.pt", vocabulary)
    assert second.resume()
    second.step(examples.batch(second.steps), 1.0)

    assert second.steps == 3
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, second.average.state_dict()[name]), name


@pytest.mark.long
def test_a_build_of_songs_goes_on(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Songs that were made stay when a build goes on; each has five codes a second, and an unfinished set is refused."""
    monkeypatch.setattr(songs, "FIRST_SEED", SHORT_SONGS_SEED)
    monkeypatch.setattr(songs, "_AT_ONCE", 4)
    checkpoint = weights.resolve("toy", EMBEDDED, cache, lambda *progress: None)
    with stage.Session(1.0) as session:
        assert songs.build(tmp_path, checkpoint, songs=1, processes=1, session=session)
        first = (tmp_path / "songs.jsonl").read_text()
        with pytest.raises(FileNotFoundError, match="1 songs, of which 100 are held out"):
            songs.load(tmp_path)
        assert songs.build(tmp_path, checkpoint, songs=2, processes=1, session=session)
    monkeypatch.setattr(songs, "HELD_OUT_SONGS", 1)

    known = songs.load(tmp_path)

    assert (tmp_path / "songs.jsonl").read_text().startswith(first)
    assert [len(song.codes) for song in known] == [5 * song.facts.piece_s for song in known]
    assert len(known) == 2


@pytest.mark.long
def test_a_code_is_replaced_by_one_that_sounds_like_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few codes stand for all: those that stand for a song's are nearer in sound than codes of other songs are."""
    checkpoint = weights.resolve("toy", EMBEDDED, cache, lambda *progress: None)
    random = np.random.default_rng(6)
    used = [random.integers(0, 64_000, 400).tolist()]
    sounds = planner_codes.sounds_of(checkpoint)

    chosen = planner_codes.substitutes(checkpoint, used, groups=64)

    def distance(codes: np.ndarray) -> float:
        return float(np.square(sounds - sounds[codes]).sum(1).mean())

    assert len(np.unique(chosen)) <= 65
    assert chosen[0] == 0
    assert distance(chosen) < 0.7 * distance(random.permutation(chosen))


def test_a_saved_planner_plans(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """The averaged network is saved as a checkpoint that Sophia's planner loads."""
    place = planner.folder(tmp_path / "work")
    place.mkdir(parents=True)
    shutil.copyfile(tmp_path / "tokenizer.json", place / "tokenizer.json")
    planner.Training(place / planner.STATE, vocabulary).save()

    saved = planner.save(tmp_path / "work", tmp_path / "exported")

    assert planner_files.verify(saved).shape.vocabulary == vocabulary.size
    with pytest.raises(FileNotFoundError, match="no trained planner"):
        planner.save(tmp_path, tmp_path / "exported")

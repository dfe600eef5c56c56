"""Trains the planner: a small Qwen3 language model that writes a song's metadata and its audio codes."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from miniature import loop, songs, stage
from miniature.compact import round_weights
from miniature.optimizers import Optimizers
from miniature.planner_codes import nearest, substitutes
from miniature.planner_texts import Example, any_song, formatted, planned, sampled, understood
from miniature.planner_vocabulary import tokenizer
from miniature.songs import HELD_OUT_SONGS, Song
from serve_app.engine.planner.vocabulary import FILE, Vocabulary
from serve_app.music.plan import CODES_PER_SECOND

BATCH = 24
PARTS = 4
"""A batch is computed in this many parts of rows of like length, so that little of it is padding."""
LONGEST_ROW = 330
SONGS_SHARE = 0.5  # of the examples; the others are of metadata only, which costs little
CROP_CODES = 150
FROM_START_SHARE = 0.5
LONG_SHARE = 0.3  # of the crops from a song's middle that are taken for a longer song's
LONGEST_CODES = 600 * CODES_PER_SECOND
UNDERSTOOD_SHARE = 0.06  # of the songs
FORMATTED_SHARE = 0.2  # of the examples without codes; the same for a query in plain words
IGNORED = -100
STATE = "planner.pt"
MANTISSA_BITS = 4
"""Of the weights: more make the package larger."""
_TOKENIZER_EXAMPLES = 3000


@dataclass(frozen=True)
class Row:
    """An example in tokens; the first `given` of them are the prompt."""

    tokens: list[int]
    positions: list[int]
    given: int


@dataclass(frozen=True)
class Sequences:
    """A batch: tokens, their positions, what each is to predict (IGNORED: nothing), and 1 where there is a token.

    All are (batch, tokens).
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    present: Tensor


def network(vocabulary: Vocabulary) -> Any:
    """An untrained planner for a vocabulary."""
    config = Qwen3Config(
        vocab_size=vocabulary.size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        dtype=torch.float32,
    )
    return Qwen3ForCausalLM(config)


class Examples:
    """Examples from songs, whose codes the vocabulary has, and from songs that nobody has played."""

    def __init__(self, vocabulary: Vocabulary, known: Sequence[Song]) -> None:
        self._vocabulary = vocabulary
        self._known = known

    def batch(self, step: int) -> list[Sequences]:
        """The examples of a step, those of like length together: always the same ones."""
        random = np.random.default_rng([19, step])
        rows = [self._row(random) for _ in range(BATCH)]
        rows.sort(key=lambda row: len(row.tokens))
        size = BATCH // PARTS
        return [padded(rows[at : at + size]) for at in range(0, BATCH, size)]

    def _row(self, random: np.random.Generator) -> Row:
        """An example of LONGEST_ROW tokens at most."""
        while len((drawn := self._draw(random)).tokens) > LONGEST_ROW:
            pass
        return drawn

    def _draw(self, random: np.random.Generator) -> Row:
        if random.random() < SONGS_SHARE:
            return self._song_row(self._known[int(random.integers(HELD_OUT_SONGS, len(self._known)))], random)
        facts, keyscale = any_song(random)
        kind = random.random()
        if kind < FORMATTED_SHARE:
            return row(self._vocabulary, formatted(facts, random))
        if kind < 2 * FORMATTED_SHARE:
            return row(self._vocabulary, sampled(facts, random))
        return row(self._vocabulary, planned(facts, (), random, keyscale))

    def _song_row(self, song: Song, random: np.random.Generator) -> Row:
        if random.random() < UNDERSTOOD_SHARE:
            return row(self._vocabulary, understood(song.facts, song.codes[:CROP_CODES]))
        part, skipped = crop(song, random)
        ended = skipped + len(part.codes) == part.facts.piece_s * CODES_PER_SECOND
        return row(self._vocabulary, planned(part.facts, part.codes, random, ended=ended), skipped)


def crop(song: Song, random: np.random.Generator) -> tuple[Song, int]:
    """A part of a song, and how many codes come before it.

    Some parts are taken for those of a longer song, so that the planner learns to go on when the prompt is far away.
    """
    most = len(song.codes) - CROP_CODES
    if most <= 0 or random.random() < FROM_START_SHARE:
        return Song(song.facts, song.codes[:CROP_CODES]), 0
    start = int(random.integers(most + 1))
    facts = song.facts
    more_s = 0
    if not facts.voice and random.random() < LONG_SHARE:
        more_s = int(random.integers((LONGEST_CODES - len(song.codes)) // CODES_PER_SECOND))
        facts = replace(facts, piece_s=facts.piece_s + more_s)
    return Song(facts, song.codes[start : start + CROP_CODES]), start + more_s * CODES_PER_SECOND


def row(vocabulary: Vocabulary, example: Example, skipped: int = 0) -> Row:
    """An example in tokens. The codes' positions leave out `skipped` codes before the first."""
    prompt = vocabulary.encode(example.prompt)
    answer = vocabulary.encode(example.answer)
    tokens = prompt + answer
    positions = list(range(len(tokens)))
    if skipped:
        first = next(at for at, token in enumerate(tokens) if token in vocabulary.code_ids)
        positions[first:] = [position + skipped for position in positions[first:]]
    return Row(tokens, positions, len(prompt))


def padded(rows: Sequence[Row]) -> Sequences:
    """Rows of different lengths as a batch."""
    longest = max(len(one.tokens) for one in rows)
    shape = (len(rows), longest)
    tokens, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    present = torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, IGNORED)
    for at, one in enumerate(rows):
        length = len(one.tokens)
        tokens[at, :length] = torch.tensor(one.tokens)
        positions[at, :length] = torch.tensor(one.positions)
        present[at, :length] = 1
        targets[at, one.given - 1 : length - 1] = tokens[at, one.given : length]
    return Sequences(tokens, positions, targets, present)


class Training:
    """The network, its optimizers and average; the step says what data comes next."""

    def __init__(self, file: Path, vocabulary: Vocabulary, start: Path | None = None) -> None:
        """The first weights are those of the saved planner with this vocabulary in the folder `start`; without it, random ones."""
        self._file = file
        self._first_code = min(vocabulary.code_ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = network(vocabulary)
        if start is not None:
            saved = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
            self.network.load_state_dict(saved.state_dict())
        self._optimizers = Optimizers(self.network)
        self.steps = 0

    @property
    def average(self) -> Any:
        """The network with averaged weights."""
        average: Any = self._optimizers.average
        return average.eval()

    def resume(self) -> bool:
        """Goes on from the saved state, if there is one."""
        state = stage.load_state(self._file)
        if state is None:
            return False
        self.network.load_state_dict(state["network"])
        self._optimizers.restore(state["optimizers"])
        self.steps = state["steps"]
        return True

    def save(self) -> None:
        state = {"network": self.network.state_dict(), "optimizers": self._optimizers.state(), "steps": self.steps}
        stage.save_state(state, self._file)

    def step(self, batch: Sequence[Sequences], rate: float) -> Mapping[str, float]:
        """One step, with the full learning rates times `rate`; returns the mean losses of text and of codes."""
        self.network.train()
        parts = [token_losses(self.network, part) for part in batch]
        losses = torch.cat([losses for losses, _ in parts])
        wanted = torch.cat([tokens for _, tokens in parts])
        with self._optimizers.paced(rate, self.steps):
            self._optimizers.step(losses.mean())
        self.steps += 1
        of_codes = wanted >= self._first_code
        return {
            "text": float(losses[~of_codes].detach().mean()),
            "codes": float(losses[of_codes].detach().mean()) if of_codes.any() else float("nan"),
        }


def token_losses(model: Any, batch: Sequences) -> tuple[Tensor, Tensor]:
    """The negative log probability of each token that is to be predicted, and these tokens: (tokens,) each."""
    hidden = model.model(
        input_ids=batch.tokens, attention_mask=batch.present, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    asked = batch.targets != IGNORED
    wanted = batch.targets[asked]
    return nn.functional.cross_entropy(model.lm_head(hidden[asked]), wanted, reduction="none"), wanted


def folder(work: Path) -> Path:
    """Where the planner's vocabulary and the training's state are in the folder of all stages' states."""
    return work / "planner"


def vocabulary_of(
    work: Path, checkpoint: Path, known: Sequence[Song], start: Path | None
) -> tuple[Vocabulary, np.ndarray]:
    """The vocabulary, and the code that stands for each of the 64,000. They are made once for a work folder.

    They are those of the saved planner in `start`; without it, they are learnt from the songs.
    """
    place = folder(work)
    stand_ins = place / "codes.npy"
    if not stand_ins.exists():
        place.mkdir(parents=True, exist_ok=True)
        if start is None:
            chosen = substitutes(checkpoint, [song.codes for song in known])
            tokenizer(_texts(), np.unique(chosen).tolist()).save(str(place / FILE))
        else:
            shutil.copyfile(start / FILE, place / FILE)
            chosen = nearest(checkpoint, Vocabulary(place).codes)
        np.save(stand_ins, chosen)
    return Vocabulary(place), np.load(stand_ins)


def train(work: Path, checkpoint: Path, session: stage.Session, start: Path | None = None) -> int:
    """Trains for the session's time; saves the state and returns the step reached.

    It goes on from a saved state; else from the planner in the folder `start`; else anew. The codes are those of the pipeline in
    `checkpoint`. Raises FileNotFoundError if `work` has no songs.
    """
    known = songs.load(work / "songs")
    vocabulary, stand_ins = vocabulary_of(work, checkpoint, known, start)
    spelled = [Song(song.facts, tuple(stand_ins[list(song.codes)].tolist())) for song in known]
    training = Training(folder(work) / STATE, vocabulary, start)
    if training.resume():
        print(f"going on from step {training.steps}", flush=True)
    examples = Examples(vocabulary, spelled)
    loop.run(training, lambda rate: training.step(examples.batch(training.steps), rate), session)
    return training.steps


def _texts() -> list[str]:
    """Texts from which the tokenizer learns its words."""
    random = np.random.default_rng(23)
    made = []
    for _ in range(_TOKENIZER_EXAMPLES // 3):
        facts, keyscale = any_song(random)
        made += [planned(facts, (), random, keyscale), formatted(facts, random), sampled(facts, random)]
    return [part for one in made for part in (*one.prompt, *one.answer) if isinstance(part, str)]


def is_trained(work: Path) -> bool:
    """Whether the planner has a training state."""
    return (folder(work) / STATE).exists()


def save(work: Path, output: Path) -> Path:
    """Saves the planner with the averaged weights of its training as a checkpoint in `output`; returns its folder.

    Raises FileNotFoundError if it has not been trained.
    """
    place = folder(work)
    if not is_trained(work):
        raise FileNotFoundError(f"{place} has no trained planner: run `python -m miniature planner`")
    training = Training(place / STATE, Vocabulary(place))
    training.resume()
    average = training.average
    round_weights(average, MANTISSA_BITS)
    saved = output / "planner"
    average.to(torch.bfloat16).save_pretrained(saved)
    shutil.copyfile(place / FILE, saved / FILE)
    return saved

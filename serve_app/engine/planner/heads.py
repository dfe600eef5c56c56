"""The parts of the language model's head: logits of the tokens that a question allows, and no others.

The head of a released model has 217,204 rows, and its 64,000 audio codes are as much to read as a fifth of the network. So
codes are asked only of the codes' rows, text only of the text's, and a choice of few tokens only of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from serve_app.engine.planner.grammar import Choice, Code, Question, Tables, Text
from serve_app.engine.planner.network import Network


class Heads:
    """The head of one network, for every kind of question."""

    def __init__(self, network: Network, tables: Tables, code_ids: Sequence[int]) -> None:
        """`code_ids` are the tokens of the audio codes."""
        self._head = network.head
        self._code_ids = code_ids
        self._codes = _rows(network.head, code_ids)
        self._text = network.head[: tables.text_size]
        self._masks = torch.full((len(Text), tables.text_size), float("-inf"), device=network.device)
        for state in Text:
            self._masks[state, tables.allowed(state)] = 0

    def of(self, questions: Sequence[Question | None]) -> "_Head":
        """Returns the head for questions of one kind."""
        if all(isinstance(question, Code) for question in questions):
            return _Codes(self._codes, self._code_ids, len(questions))
        if all(isinstance(question, Text) for question in questions):
            return _Texts(self._text, self._masks[[question for question in questions if isinstance(question, Text)]])
        return _Choices(self._head, [question.tokens for question in questions if isinstance(question, Choice)])


@dataclass(frozen=True, slots=True)
class _Codes:
    """Logits of the audio codes."""

    head: torch.Tensor
    ids: Sequence[int]
    songs: int

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return functional.linear(states, self.head).float()

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def widths(self) -> list[int]:
        return [len(self.ids)] * self.songs

    def tokens(self, columns: Sequence[int]) -> list[int]:
        return [self.ids[column] for column in columns]


@dataclass(frozen=True, slots=True)
class _Texts:
    """Logits of the tokens of text, with a mask for each row."""

    head: torch.Tensor
    masks: torch.Tensor

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return functional.linear(states, self.head).float()

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.masks

    def widths(self) -> list[int]:
        return [len(self.head)] * len(self.masks)

    def tokens(self, columns: Sequence[int]) -> list[int]:
        return list(columns)


class _Choices:
    """Logits of few tokens, others for each row."""

    def __init__(self, head: torch.Tensor, choices: Sequence[tuple[int, ...]]) -> None:
        width = max(len(choice) for choice in choices)
        self._ids = [[*choice, *[choice[0]] * (width - len(choice))] for choice in choices]
        self._widths = [len(choice) for choice in choices]
        self._extra = torch.arange(width, device=head.device) >= torch.tensor(self._widths, device=head.device)[:, None]
        self._rows = head[torch.tensor(self._ids, device=head.device)]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return torch.einsum("rkh,rh->rk", self._rows, states).float()

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(self._extra, float("-inf"))

    def widths(self) -> list[int]:
        return self._widths

    def tokens(self, columns: Sequence[int]) -> list[int]:
        return [ids[column] for ids, column in zip(self._ids, columns, strict=True)]


_Head = _Codes | _Texts | _Choices


def _rows(head: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """The rows of some tokens: a view if they are neighbours, as in the released models, otherwise a copy."""
    if list(ids) == list(range(ids[0], ids[0] + len(ids))):
        return head[ids[0] : ids[0] + len(ids)]
    return head[torch.tensor(ids, device=head.device)]

"""CUDA graphs of the passes of one token: recorded once for each shape, then replayed.

A pass of a small model consists of hundreds of kernels that take less time than their launch. Replaying a graph launches all of
them at once. Not checked on a device yet, so the setting `cuda_graphs` is off unless an operator turns it on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Forward = Callable[[torch.Tensor, torch.Tensor, int, int], torch.Tensor]
"""Takes tokens [rows, 1], places [rows, 1], the first row and the limit of `Network`, and returns hidden states [rows, hidden]."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    tokens: torch.Tensor
    places: torch.Tensor
    states: torch.Tensor


class Graphs:
    """Passes of one token on a CUDA device. The tensors that `forward` uses otherwise must stay where they are."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._recordings: dict[tuple[int, int], _Recording] = {}

    def __call__(self, tokens: torch.Tensor, places: torch.Tensor, limit: int) -> torch.Tensor:
        """Returns the hidden states of rows from 0 on: [rows, hidden]."""
        shape = (len(tokens), limit)
        if shape not in self._recordings:
            self._recordings[shape] = self._record(tokens, places, limit)
        recording = self._recordings[shape]
        recording.tokens.copy_(tokens)
        recording.places.copy_(places)
        recording.graph.replay()
        return recording.states.clone()

    def _record(self, tokens: torch.Tensor, places: torch.Tensor, limit: int) -> _Recording:
        """Records the passes of one shape. The pass before it, on a stream of its own, lets libraries allocate what they keep."""
        tokens, places = tokens.clone(), places.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(tokens, places, 0, limit)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            states = self._forward(tokens, places, 0, limit)
        return _Recording(graph, tokens, places, states)

"""A training step as a CUDA graph: a step of small networks is thousands of kernels, and launching them one by one takes
longer than computing them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARM_UP_STEPS = 3  # PyTorch's advice: what is allocated or chosen on first use is then not part of the graph

Shapes = tuple[torch.Size, ...]


class GraphedStep:
    """Calls `step`, and from the fourth call with inputs of the same shapes on replays the graph of it.

    `step` takes and returns tensors, and never waits for the device: no tensor's value decides what it does. The returned
    tensor is valid until the next call.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self._step = step
        self._calls: dict[Shapes, int] = {}
        self._graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        shapes = tuple(tensor.shape for tensor in inputs)
        self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if self._calls[shapes] <= WARM_UP_STEPS:
            return self._aside(inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._captured(inputs)
        graph, kept, result = self._graphs[shapes]
        for own, given in zip(kept, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        return result

    def _aside(self, inputs: Sequence[Tensor]) -> Tensor:
        """A call in a stream of its own, as a graph is captured in one."""
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self._step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _captured(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        graph = torch.cuda.CUDAGraph()
        kept = [tensor.clone() for tensor in inputs]
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads pin batches meanwhile
            result = self._step(*kept)
        return graph, kept, result

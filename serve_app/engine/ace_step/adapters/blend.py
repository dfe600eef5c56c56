"""The adapters of one song, and how they are switched on for a pass of the transformer."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from serve_app.engine.ace_step.adapters.memory import Adapter
from serve_app.engine.ace_step.adapters.updates import Update


class Blend:
    """Adapters with their scales. Their changes add up.

    The scale multiplies what an adapter changes, including DoRA's rescaling. So 0 changes nothing.
    """

    def __init__(self, adapters: Iterable[tuple[Adapter, float]], device: torch.device, dtype: torch.dtype) -> None:
        self._updates: dict[str, list[tuple[float, Update]]] = defaultdict(list)
        for adapter, scale in adapters:
            for layer, update in adapter.updates.items():
                self._updates[layer].append((scale, update.to(device, dtype)))

    @contextlib.contextmanager
    def applied(self, transformer: Any) -> Iterator[None]:
        """Inside the block, the passes of `transformer` are changed by the adapters. Its weights stay as they are."""
        hooks = [
            transformer.get_submodule(layer).register_forward_hook(_hook(updates))
            for layer, updates in self._updates.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _hook(updates: Sequence[tuple[float, Update]]) -> Any:
    """Returns a forward hook that adds `updates`, each with its scale, to the output of a linear layer."""

    def add(layer: Any, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        [inputs] = arguments
        return output + sum(scale * update.added(layer, inputs, output) for scale, update in updates)

    return add

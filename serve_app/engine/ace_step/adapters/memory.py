"""Keeps the adapters that were used last in memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from serve_app.engine.ace_step.adapters.updates import Update


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits the loaded transformer."""

    updates: Mapping[str, Update]
    """By the layer's path in diffusers' transformer. In host memory, in the model's dtype."""

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(update.size for update in self.updates.values())


class AdapterMemory:
    """The adapters that were used last, at most `capacity` bytes of them; the last one is kept whatever its size."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._adapters: OrderedDict[Hashable, Adapter] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes of all adapters in memory."""
        return sum(adapter.size for adapter in self._adapters.values())

    def get(self, key: Hashable, load: Callable[[], Adapter]) -> Adapter:
        """Returns the adapter with this key, which `load` returns if it is not in memory."""
        adapter = self._adapters.get(key) or load()
        self._adapters[key] = adapter
        self._adapters.move_to_end(key)
        while len(self._adapters) > 1 and self.size > self._capacity:
            self._adapters.popitem(last=False)
        return adapter

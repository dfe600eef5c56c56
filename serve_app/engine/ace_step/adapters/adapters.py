"""The adapters of a loaded model: finds those that a song asks for, reads them, and keeps the last ones in memory.

This file imports torch: import it only after `loading.import_packages`.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from serve_app.config import AdapterArgs
from serve_app.engine.ace_step.adapters.blend import Blend
from serve_app.engine.ace_step.adapters.memory import Adapter, AdapterMemory
from serve_app.engine.ace_step.adapters.reading import Parsed, parse, read
from serve_app.engine.ace_step.adapters.updates import Update, rescaled
from serve_app.errors import BadAdapter
from serve_app.weights import Report

Fetch = Callable[[str, AdapterArgs, Report], Path]
"""Takes an adapter's name, its settings, and a Report. Returns its file on this node. Raises LoadError or BadAdapter."""


class Adapters:
    """The adapters of a loaded model. Only one thread at a time may use it."""

    def __init__(
        self, transformer: Any, known: Callable[[], Mapping[str, AdapterArgs]], fetch: Fetch, capacity: int
    ) -> None:
        """`known` returns the model's adapters by name. At most `capacity` bytes of adapters stay in memory."""
        self._transformer = transformer
        self._known = known
        self._fetch = fetch
        self.memory = AdapterMemory(capacity)
        self._blends: WeakValueDictionary[Hashable, Blend] = WeakValueDictionary()
        self._layers = {
            path: layer for path, layer in transformer.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d)
        }

    def blend(self, scales: Mapping[str, float | None], report: Report = lambda *progress: None) -> Blend | None:
        """Returns the adapters that a song asks for, None if they change nothing. Equal requests get the same blend.

        `scales` has the adapters' scales by name; None stands for the adapter's default. `report` gets the progress of fetching
        those that are not on this node, and what it raises ends that.

        Raises:
            BadAdapter: an adapter no longer exists, or does not fit this model.
            LoadError: an adapter cannot be fetched.
        """
        wanted = {name: scale for name, scale in scales.items() if scale != 0}
        if not wanted:
            return None
        known = self._known()
        parts = []
        for name, scale in wanted.items():
            settings = _require(name, known)
            with _errors_of(name):
                file = self._fetch(name, settings, report)
            parts.append((name, file, settings.scale if scale is None else scale))
        key = tuple((_version(file), scale) for _, file, scale in parts)
        blend = self._blends.get(key)
        if blend is None:
            adapters = [(self._adapter(name, file), scale) for name, file, scale in parts]
            blend = Blend(adapters, self._transformer.device, self._transformer.dtype)
            self._blends[key] = blend
        return blend

    def _adapter(self, name: str, file: Path) -> Adapter:
        with _errors_of(name):
            return self.memory.get(_version(file), lambda: self._load(file))

    def _load(self, file: Path) -> Adapter:
        shapes = {path: tuple(layer.weight.shape) for path, layer in self._layers.items()}
        found = parse(read(file), shapes)
        return Adapter({path: self._update(self._layers[path], parsed) for path, parsed in found.items()})

    def _update(self, layer: nn.Linear | nn.Conv1d, parsed: Parsed) -> Update:
        """What an adapter changes in `layer`, in host memory and in the model's dtype."""
        update = Update(parsed.change)
        if parsed.magnitude is not None:
            weight = layer.weight.float()
            change = parsed.change.to(weight.device, torch.float32)
            update = rescaled(change, weight, parsed.magnitude)
        return update.to(torch.device("cpu"), self._transformer.dtype)


@contextlib.contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Names the adapter in a BadAdapter that is raised inside the block."""
    try:
        yield
    except BadAdapter as error:
        raise BadAdapter(f"The adapter {name} cannot be used: {error.message}") from error


def _require(name: str, known: Mapping[str, AdapterArgs]) -> AdapterArgs:
    if name not in known:
        raise BadAdapter(
            f"The adapter {name} no longer exists. The model's adapters are: {', '.join(known) or 'none'}."
        )
    return known[name]


def _version(file: Path) -> Hashable:
    """Identifies the content of a file, so that a file that was replaced is read again."""
    status = file.stat()
    return str(file), status.st_mtime_ns, status.st_size

"""Measures the songs that Sophia makes from songs, over HTTP, with the packaged models. Prints Markdown.

`python -m benchmarks.songs_from_songs [--only NAME ...]` takes about 20 minutes on 2 cores. Progress goes to standard error. The
figures are of a toy model: they show that the tasks work, and not how a released model sounds.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.measured_engine import MeasuredEngine
from benchmarks.player import Player
from benchmarks.songs_from_songs.adapters import MEMORY_MB, cycles, made_adapters, traces
from benchmarks.songs_from_songs.bombs import bombs
from benchmarks.songs_from_songs.covers import covers, references
from benchmarks.songs_from_songs.generations import generations
from benchmarks.songs_from_songs.repaints import extensions, repaints
from benchmarks.songs_from_songs.stems import stems
from serve_app import weights
from serve_app.config import ModelArgs
from serve_app.config.sources import EMBEDDED, EMBEDDED_BASE
from tests.support.running import Service, running


@dataclass(frozen=True)
class Stage:
    """A running service with one model."""

    service: Service
    engine: MeasuredEngine
    player: Player
    folder: Path
    """Where its adapters are."""


_SECTIONS: Final[Mapping[str, tuple[str, Callable[[Stage], str]]]] = {
    "repaint": (EMBEDDED, lambda stage: repaints(stage.player)),
    "extend": (EMBEDDED, lambda stage: extensions(stage.player)),
    "cover": (EMBEDDED, lambda stage: covers(stage.player)),
    "reference": (EMBEDDED, lambda stage: references(stage.player)),
    "generations": (EMBEDDED, lambda stage: generations(stage.player, stage.engine)),
    "bomb": (EMBEDDED, lambda stage: bombs(stage.service.client, stage.player)),
    "adapter traces": (EMBEDDED, lambda stage: traces(stage.player)),
    "adapter memory": (EMBEDDED, lambda stage: cycles(stage.player, stage.folder)),
    "stems": (EMBEDDED_BASE, lambda stage: stems(stage.player)),
}
"""The model of each section, and what measures it."""


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.songs_from_songs", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_SECTIONS, default=list(_SECTIONS), help="these sections only")
    wanted = parser.parse_args().only
    for source in (EMBEDDED, EMBEDDED_BASE):
        names = [name for name in wanted if _SECTIONS[name][0] == source]
        if names:
            with _service(source) as stage:
                for name in names:
                    _print_section(name, stage)
    return 0


def _print_section(name: str, stage: Stage) -> None:
    print(f"measuring: {name}", file=sys.stderr, flush=True)
    began = time.monotonic()
    text = _SECTIONS[name][1](stage)
    print(f"## {name} (`{stage.engine.facts.source}`, {time.monotonic() - began:.0f} s)\n\n{text}\n", flush=True)


@contextmanager
def _service(source: str) -> Iterator[Stage]:
    """Runs a service with one worker for a packaged model; turbo's has adapters."""
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache"
        folder = Path(temporary) / "adapters"
        plain = ModelArgs(source=source, device="cpu")
        checkpoint = weights.resolve("toy", plain, cache, lambda *progress: None)
        adapters = made_adapters(checkpoint, folder) if source == EMBEDDED else {}
        model = plain.model_copy(update={"adapters": adapters, "adapter_memory_mb": MEMORY_MB})
        engine = MeasuredEngine("toy", model, cache)
        with running(Path(temporary) / "data", {"toy": model}, engine) as service:
            yield Stage(service, engine, Player(service.client), folder)


if __name__ == "__main__":
    sys.exit(main())

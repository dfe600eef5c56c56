"""Plays every task of a model, measures, and writes a report to attach to an issue: `make acceptance MODEL=…`.

`python -m benchmarks.acceptance MODEL`; `--help` shows the options. MODEL is a model of serve_config.yaml, a checkpoint that comes
with Sophia, a hub repository or a folder. The checkpoint is fetched and converted into the cache. A worker loads it, and the songs
are made over HTTP. SOPHIA_ variables do not count.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.acceptance.choice import WrongModel, chosen_model
from benchmarks.acceptance.lyrics import lyrics
from benchmarks.acceptance.recorder import Recorder
from benchmarks.acceptance.report import report
from benchmarks.acceptance.sources import covers, edits, references, repaints
from benchmarks.acceptance.tracks import tracks
from benchmarks.acceptance.words import settings_of_sampling, songs_from_words
from benchmarks.measured_engine import MeasuredEngine
from benchmarks.player import Made, NoSong, Player
from serve_app import weights
from serve_app.config import ModelArgs
from serve_app.engine.protocol import EngineFacts
from serve_app.errors import SophiaError
from serve_app.ops.cli.context import show_progress
from serve_app.settings import load_args
from tests.support.paths import ROOT
from tests.support.running import running

_CONFIG: Final = Path("serve_config.yaml")
_OUT: Final = ROOT / "build" / "acceptance"
_NAME: Final = "model"
_PARTS: Final[Mapping[str, Callable[[Recorder, Made], str]]] = {
    "sampling": lambda recorder, first: settings_of_sampling(recorder),
    "repaint": repaints,
    "cover": covers,
    "edit": edits,
    "reference": lambda recorder, first: references(recorder),
    "tracks": tracks,
    "lyrics": lambda recorder, first: lyrics(recorder),
}
"""What is played after the songs from words."""


class _TalkingEngine(MeasuredEngine):
    """Says on the standard error how far its load is."""

    load_s: float

    def load(self, tell: Callable[[str, float | None, str], None]) -> EngineFacts:
        def say(phase: str, fraction: float | None, message: str) -> None:
            tell(phase, fraction, message)
            print(f"{phase}: {message}", file=sys.stderr, flush=True)

        began = time.monotonic()
        facts = super().load(say)
        self.load_s = time.monotonic() - began
        return facts


def main(words: Sequence[str] | None = None) -> int:
    """Returns 0 if all checks passed, 1 if some failed, and 2 if the model cannot be played."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acceptance", description=__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--dit", help="the diffusion model of a source with several, as in the setting `dit`")
    parser.add_argument("--seconds", type=float, default=30, help="length of the songs")
    parser.add_argument("--steps", type=int, help="denoising steps, instead of the variant's default")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="play these parts only")
    parser.add_argument("--cache", type=Path, help="folder for checkpoints, instead of the configuration's")
    parser.add_argument("--out", type=Path, help="folder for the report and the songs")
    given = parser.parse_args(words)
    try:
        return _accept(given)
    except WrongModel as error:
        print(f"{error}.", file=sys.stderr)
    except SophiaError as error:
        print(f"{error.message} [{error.code}]", file=sys.stderr)
    return 2


def _accept(given: argparse.Namespace) -> int:
    args = load_args(_CONFIG if _CONFIG.exists() else None)
    model = chosen_model(given.model, args, given.dit)
    cache = given.cache or args.weights_dir
    weights.resolve(_NAME, model, cache, show_progress)
    folder = given.out or _OUT / f"{Path(given.model).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    engine = _TalkingEngine(_NAME, model, cache)
    with tempfile.TemporaryDirectory() as data, running(Path(data), {_NAME: model}, engine) as service:
        settings = {} if given.steps is None else {"steps": given.steps}
        recorder = Recorder(Player(service.client, **settings), engine, folder, given.seconds)
        comparisons = _played(recorder, given.only)
    file = folder / "report.md"
    file.write_text(report(given.model, _layout(model, cache), engine.load_s, recorder, comparisons))
    print(file)
    return 0 if all(check.passed for check in recorder.checks) else 1


def _played(recorder: Recorder, wanted: Collection[str]) -> dict[str, str]:
    """Plays the wanted parts that the model can play. Returns tables of comparisons by their titles."""
    try:
        first = songs_from_words(recorder)
    except NoSong as error:
        recorder.failed("text2music", error)
        return {}
    facts = recorder.engine.facts
    playable = {"edit": "edit" in facts.tasks, "tracks": facts.variant == "base", "lyrics": facts.aligns_lyrics}
    names = [name for name in wanted if playable.get(name, True)]
    texts = {name: _part(recorder, first, name) for name in names}
    return {name.capitalize(): text for name, text in texts.items() if text}


def _part(recorder: Recorder, first: Made, name: str) -> str:
    """Plays one part. An error in it is a failed check, and the other parts are played."""
    try:
        return _PARTS[name](recorder, first)
    except NoSong as error:
        recorder.failed(name, error)
        return ""


def _layout(model: ModelArgs, cache: Path) -> str:
    record = weights.conversion(_NAME, model, cache)
    return f"converted from {record['layout']}" if record else "used as it is"


if __name__ == "__main__":
    logging.disable(logging.INFO)  # a line for each job would hide the progress
    sys.exit(main())

"""`make acceptance` with the packaged models and short songs: what it plays, what it reports, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.acceptance.__main__ import main
from serve_app import weights
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.splice import spliced
from serve_app.music import SourcePlan
from serve_app.weights.layout import LYRIC_HEADS
from tests.support.checkpoints import edit
from tests.support.layouts import make_original
from tests.support.listening import Samples

SHORT = ["--seconds", "2", "--steps", "1"]


@pytest.mark.long
def test_a_changed_sample_is_found(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If repaints change one kept sample, five checks fail, and only these."""

    def careless(raw: np.ndarray, source: np.ndarray, plan: SourcePlan, ramp_s: float, seed: int) -> np.ndarray:
        song: Samples = spliced(raw, source, plan, ramp_s, seed)
        kept = len(song) - 1 if plan.windows[0].start == 0 else 0
        song[kept] += 0.01
        return song

    monkeypatch.setattr("serve_app.engine.ace_step.work.spliced", careless)

    status = main(["embedded", *SHORT, "--only", "repaint", "--cache", str(cache), "--out", str(tmp_path)])

    report = (tmp_path / "report.md").read_text()
    wrong = [line for line in report.splitlines() if line.endswith("**NO** |")]
    assert status == 1
    assert "5 of 9 checks failed." in report
    assert all(line.startswith("| repaint, ") for line in wrong), wrong


@pytest.mark.long
def test_a_base_model_passes(cache: Path, tmp_path: Path) -> None:
    """All tasks of base models are played, and all checks pass."""
    report = passing(["embedded-base", *SHORT, "--cache", str(cache), "--out", str(tmp_path)], tmp_path)

    assert "All 10 checks passed." in report
    assert "| layout | used as it is |" in report
    for title in ("Sampling", "Repaint", "Cover", "Edit", "Reference", "Tracks"):
        assert f"## {title}\n\n| " in report
    for task in ("extract", "lego", "complete", "stems"):
        assert f"| {task}, drums" in report


@pytest.mark.long
def test_a_checkpoint_in_the_original_layout_is_converted_and_passes(cache: Path, tmp_path: Path) -> None:
    """A folder in ACE-Step's layout is converted and played; not its VAE's encoder, as the toy model has one of its own."""
    folder = weights.resolve("m", ModelArgs(source="embedded"), cache, lambda *report: None)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    original = make_original(folder, tmp_path / "original", config=config)
    out = tmp_path / "out"

    report = passing(
        [str(original), *SHORT, "--only", "sampling", "--cache", str(tmp_path / "cache"), "--out", str(out)], out
    )

    assert "All 4 checks passed." in report
    assert "| layout | converted from ACE-Step's original layout |" in report


def test_a_model_that_aligns_lyrics_tells_when_they_are_sung(copy: Path, tmp_path: Path) -> None:
    """The toy with random weights, with heads named in its config.json: the best of four songs, and a table of its lines."""
    edit(copy / "transformer" / "config.json", {LYRIC_HEADS: {"1": [0], "2": [1]}})
    out = tmp_path / "out"

    report = passing(
        [str(copy), *SHORT, "--only", "lyrics", "--cache", str(tmp_path / "cache"), "--out", str(out)], out
    )

    assert "| lyrics: the song with the best score is delivered | [0." in report
    assert "## Lyrics\n\n| line | begins | ends |" in report
    assert "| We listen close and play it loud | " in report


def passing(words: list[str], out: Path) -> str:
    """The report of an acceptance in which all checks pass; it has the figures and the file of each song."""
    status = main(words)
    report = (out / "report.md").read_text()
    songs = [line.split(" | ") for line in report.partition("## Songs")[2].splitlines() if line.endswith(".wav |")]
    assert status == 0, report
    assert {song[-1].removesuffix(" |") for song in songs} == {file.name for file in out.glob("*.wav")}
    assert all(float(song[3]) > 0 for song in songs)
    return report


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "nonsense",
            "MODEL is 'nonsense', which names no model; give a model of serve_config.yaml (ace-step), one that",
        ),
        ("", "MODEL is '', which names no model; give"),
        ("simulated", "MODEL is 'simulated', which names no model; give"),
        ("/nowhere", "models.model.source: the folder /nowhere does not exist on this node."),
    ],
)
def test_a_wrong_model_is_refused_in_one_line(
    model: str, message: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says what is wrong and what is allowed, and nothing is played."""
    status = main([model, *SHORT, "--cache", str(cache)])

    [line] = capsys.readouterr().err.splitlines()
    assert status == 2
    assert line.startswith(message)

"""The report of an acceptance, in Markdown."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import torch

from benchmarks.acceptance.recorder import NOTHING, Check, Play, Recorder
from benchmarks.acceptance.words import SONG
from benchmarks.markdown import table
from serve_app import __version__
from serve_app.engine.protocol import EngineFacts
from tests.support.paths import ROOT


def report(model: str, layout: str, load_s: float, recorder: Recorder, comparisons: Mapping[str, str]) -> str:
    """The whole report. `layout` says how the checkpoint was converted; `comparisons` has tables by title."""
    wrong = sum(not check.passed for check in recorder.checks)
    verdict = (
        f"{wrong} of {len(recorder.checks)} checks failed." if wrong else f"All {len(recorder.checks)} checks passed."
    )
    parts = [
        f"# Acceptance of {model}",
        verdict,
        "What was played is in the folder of this report. Please listen to it, and attach this file to an issue.",
        table(["", ""], _facts(layout, load_s, recorder.engine.facts)),
        "## Checks",
        table(["what must be so", "found", ""], [_check(check) for check in recorder.checks]),
        *(f"## {title}\n\n{text}" for title, text in comparisons.items()),
        "## Songs",
        f"Unless its request says otherwise, a song has: {_fields(SONG)}.",
        table(_PLAY_HEADS, [_play(play) for play in recorder.plays]),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(layout: str, load_s: float, facts: EngineFacts) -> list[list[object]]:
    """What the figures depend on: versions, checkpoint and device."""
    packages = {"sophia": f"{__version__} {_commit()}".strip(), "python": platform.python_version(), **facts.versions}
    return [
        ["date", datetime.now(UTC).isoformat(timespec="seconds")],
        ["checkpoint", f"{facts.source} {facts.revision or ''}".strip()],
        ["layout", layout],
        ["variant", facts.variant],
        ["weights", f"{facts.weights_bytes / 1e9:.2f} GB, {facts.dtype}"],
        ["device", f"{facts.device}{_driver()}"],
        ["loaded in", f"{load_s:.1f} s"],
        ["versions", ", ".join(f"{name} {number}" for name, number in packages.items())],
    ]


def _check(check: Check) -> list[str]:
    return [check.name, check.found, "yes" if check.passed else "**NO**"]


_LONGEST: Final = 80
"""Characters that are shown of a request's field."""
_PLAY_HEADS: Final = [
    "song",
    "s a step",
    "s in all",
    "GB at most",
    "peak, dBFS",
    "LUFS",
    "silent",
    "key",
    "bpm",
    "request",
    "file",
]


def _play(play: Play) -> list[str]:
    return [
        play.name,
        NOTHING if play.step_s is None else f"{play.step_s:.3f}",
        f"{play.total_s:.2f}",
        f"{play.peak_gb:.2f}",
        f"{play.peak_db:.1f}",
        f"{play.lufs:.1f}",
        f"{play.silent:.2f}",
        play.key,
        play.bpm,
        _fields({name: value for name, value in play.request.items() if SONG.get(name) != value}),
        play.file,
    ]


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {_short(str(value))}" for name, value in fields.items())


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"


def _commit() -> str:
    """The commit of this checkout; empty if it is none."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _driver() -> str:
    """The NVIDIA driver's version, if there is one."""
    if not torch.cuda.is_available():
        return ""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", driver {found[0]}" if found else ""

"""Planners with random weights."""

from pathlib import Path
from typing import Any

from serve_app.config import ModelArgs
from serve_app.config.language_model import LanguageModelArgs
from serve_app.engine.planner.planner import QwenPlanner
from serve_app.engine.planner.protocol import Wishes
from serve_app.engine.planner.vocabulary import FILE
from serve_app.music.plan import Plan
from serve_app.weights import random_planner


def tokenizer_folder(folder: Path, codes: int = 100) -> Path:
    """Write the tokenizer of a random planner to `folder`."""
    random_planner.tokenizer(codes).save(str(folder / FILE))
    return folder


def loaded(cache: Path, **settings: Any) -> QwenPlanner:
    """A planner on the CPU, loaded. It is random unless `settings` name another source."""
    planner = QwenPlanner("m", ModelArgs(device="cpu"), LanguageModelArgs(**{"source": "random", **settings}), cache)
    planner.load(lambda phase, fraction, detail: None)
    return planner


def planned(planner: QwenPlanner, wishes: Wishes) -> Plan:
    """The plan for these wishes."""
    return planner.plan(wishes, lambda stage, done, most: None, lambda: False)

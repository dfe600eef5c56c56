"""Planners with random weights."""

from pathlib import Path

from serve_app.engine.planner.vocabulary import FILE
from serve_app.weights import random_planner


def tokenizer_folder(folder: Path, codes: int = 100) -> Path:
    """Write the tokenizer of a random planner to `folder`."""
    random_planner.tokenizer(codes).save(str(folder / FILE))
    return folder

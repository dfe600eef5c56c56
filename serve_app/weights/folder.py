"""A local folder as a source of checkpoints, for folders that cannot be used where they are."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from serve_app import errors
from serve_app.weights.cache import Remote, RemoteFile

_BLOCK_BYTES: Final = 8 << 20
_DEPTH: Final = 3
"""How many folders deep files are looked for: `split_files/vae/NAME` in a copy of ComfyUI's repository, `vae/NAME` in ComfyUI's."""

_SUFFIXES: Final = (".safetensors", ".json", ".txt", ".jinja", ".pt", ".bin", ".ckpt", ".pth")
"""What checkpoints consist of, also those that are refused."""


def names(folder: Path) -> set[str]:
    """Returns the files in `folder` that may belong to a checkpoint, as paths relative to it."""
    found: set[str] = set()
    for place, inside, files in os.walk(folder, followlinks=True):
        below = Path(place).relative_to(folder)
        if len(below.parts) == _DEPTH:
            inside.clear()
        found.update(str(below / file) for file in files if file.endswith(_SUFFIXES))
    return found


def remote(folder: Path, listed: Iterable[str]) -> Remote:
    """Returns the files `listed` in `folder`. The commit changes when the size or modification time of one of them does.

    Raises:
        MissingFile: a file disappeared meanwhile.
    """
    states = {name: _need(folder / name).stat() for name in sorted(listed)}
    files = {name: RemoteFile(state.st_size, None) for name, state in states.items()}
    text = json.dumps([(name, state.st_size, state.st_mtime_ns) for name, state in states.items()])
    commit = hashlib.sha256(text.encode()).hexdigest()[:40]
    return Remote(str(folder), commit, lambda: files, partial(_read, folder))


def _read(folder: Path, name: str, start: int) -> Iterator[bytes]:
    """Yields the content of a file from byte `start`. Raises MissingFile."""
    with _need(folder / name).open("rb") as stream:
        stream.seek(start)
        while block := stream.read(_BLOCK_BYTES):
            yield block


def _need(file: Path) -> Path:
    if not file.exists():
        raise errors.MissingFile(f"{file} has disappeared. Put it back, or set another source.")
    return file

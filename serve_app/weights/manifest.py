"""The manifest of a checkpoint: its files with their sizes and hashes. A folder that has one is a complete copy."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serve_app import errors
from serve_app.weights.layout import AGAIN, need, read_json
from serve_app.weights.progress import Progress, Report

NAME: Final = "sophia.manifest.json"
_BLOCK_BYTES: Final = 1 << 20


def write(folder: Path, source: str, commit: str, hashes: Mapping[str, str]) -> None:
    """Writes the manifest of the files in `folder`. `hashes` maps each name to its SHA-256 (hex). Call it last."""
    write_listed(folder, source, commit, {name: (folder / name).stat().st_size for name in hashes}, hashes)


def write_listed(folder: Path, source: str, commit: str, sizes: Mapping[str, int], hashes: Mapping[str, str]) -> None:
    """Writes a manifest to `folder` for files that may be elsewhere. `sizes` are in bytes, `hashes` SHA-256 (hex), both by name."""
    files = {name: {"size": sizes[name], "sha256": sha256} for name, sha256 in sorted(hashes.items())}
    write_whole(folder / NAME, json.dumps({"source": source, "commit": commit, "files": files}, indent=1))


def is_complete(folder: Path) -> bool:
    """Whether `folder` has a manifest and all its files have the right size. Reads no file, so it takes milliseconds."""
    if not (folder / NAME).exists():
        return False
    return all(has(folder / name, entry["size"]) for name, entry in _files(read_json(folder / NAME)).items())


def known_hashes(content: bytes) -> dict[str, str]:
    """Returns the SHA-256 (hex) of each file in a manifest with this content; an empty dict if it is not a manifest."""
    try:
        return {name: str(entry["sha256"]) for name, entry in _files(json.loads(content)).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def check_hashes(folder: Path, report: Report) -> int:
    """Compares the hash of every file with the manifest, and returns the number of bytes read. Reports the phase "verify".

    Raises:
        MissingFile: the manifest or one of its files is missing.
        CorruptFile: a file has another hash. The message names the file and both hashes.
    """
    if not (folder / NAME).exists():
        raise errors.MissingFile(
            f"{folder} has no {NAME}, so there are no hashes to compare with. 'sophia weights pull' writes one."
        )
    files = _files(read_json(folder / NAME))
    progress = Progress(report, "verify", "checking", 0, sum(entry["size"] for entry in files.values()))
    for name, entry in files.items():
        found = digest(need(folder / name), progress).hexdigest()
        if found != entry["sha256"]:
            raise errors.CorruptFile(
                f"{folder / name} has sha256 {found} but its manifest has {entry['sha256']}: {AGAIN}"
            )
    return progress.total


def digest(file: Path, progress: Progress | None = None) -> "hashlib._Hash":
    """Returns the SHA-256 of a file, of no bytes if it does not exist. The caller may update it with more bytes."""
    found = hashlib.sha256()
    if file.exists():
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                found.update(block)
                if progress:
                    progress.add(len(block))
    return found


def has(file: Path, size: int) -> bool:
    """Whether `file` exists and has `size` bytes."""
    return file.is_file() and file.stat().st_size == size


def write_whole(file: Path, text: str) -> None:
    """Writes a small file atomically. Several processes, also in different containers, may write it at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _files(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(content["files"])

"""Packs exported pipelines as the package data that `source: embedded` unpacks: `python -m miniature.pack FOLDER`.

Weights are stored in bfloat16, those of the VAE in float16. Weights and other large files are compressed with LZMA as NAME.xz; the
rest is copied. Turbo's files come first; in the folder `base` are base's manifest and the files in which it differs, of weights
the difference. The planner's folder has a manifest, too. A manifest lists the unpacked files with their sizes and hashes. The same
pipelines give the same bytes.
"""

import argparse
import hashlib
import lzma
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serve_app.config.sources import EMBEDDED, EMBEDDED_BASE
from serve_app.weights import cache, embedded, manifest
from serve_app.weights.embedded import BASE, DIFFERENCE, PACKED, PLANNER, SUFFIX
from serve_app.weights.layout import is_wanted

PLANNER_FILES: Final = ("config.json", "model.safetensors", "tokenizer.json")

_LZMA: Final = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]
"""Positions matter modulo two bytes, which a number has: it saves 6 % of the preset's size."""


_SOURCES: Final[Mapping[str, str]] = {"turbo": EMBEDDED, "base": EMBEDDED_BASE, "planner": PLANNER}
"""What is packed, by the names of the export's folders, and its name for `embedded.planned`."""
_LARGE: Final = 100_000
"""Bytes from which files that hold no weights are compressed, too."""


def pack(turbo: Path, target: Path, base: Path | None = None, planner: Path | None = None) -> int:
    """Replaces `target` by the packed form of saved pipelines and of a saved planner. Returns its size in bytes.

    Raises:
        FileNotFoundError: a pipeline's folder has no model_index.json.
    """
    shared = _contents(turbo)
    own = {} if base is None else _contents(base)
    shutil.rmtree(target, ignore_errors=True)
    _write_variant(target, shared, shared)
    if own:
        _write_base(target / BASE, own, shared)
    if planner is not None:
        files = {name: _content(planner / name) for name in PLANNER_FILES}
        _write_variant(target / PLANNER, files, files)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main(arguments: Sequence[str] | None = None) -> None:
    """Packs the variants in the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m miniature.pack", description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        help="what `python -m miniature export` has written: turbo, base, planner; those that it lacks stay as they are packed",
    )
    parser.add_argument(
        "--target", type=Path, default=PACKED, help="where to write the packed files (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    if not any((chosen.folder / name).exists() for name in _SOURCES):
        parser.error(f"{chosen.folder} has none of {', '.join(_SOURCES)}")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            turbo, base, planner = (_exported_or_packed(chosen.folder, name, Path(scratch)) for name in _SOURCES)
            size = pack(turbo, chosen.target, base, planner)
    except FileNotFoundError as error:
        parser.error(str(error))
    print(f"{chosen.target}: {size / 1e6:.1f} MB")


def _exported_or_packed(folder: Path, name: str, scratch: Path) -> Path:
    """The exported part of a name, or else what is packed now, which is unpacked in `scratch`."""
    if (folder / name).exists():
        return folder / name
    return cache.fetch(embedded.planned(scratch / name, _SOURCES[name]), lambda *_: None)


def _contents(source: Path) -> dict[str, bytes]:
    """The unpacked files of a saved pipeline by name."""
    if not (source / "model_index.json").is_file():
        raise FileNotFoundError(f"{source} has no model_index.json: name a folder that save_pretrained has written.")
    return {name: _content(source / name) for name in _names(source)}


def _write_base(target: Path, own: Mapping[str, bytes], shared: Mapping[str, bytes]) -> None:
    """Writes base's manifest and the files in which it differs from turbo's, `shared`."""
    written = {}
    for name, content in own.items():
        if content == shared.get(name):
            continue
        if name.endswith(".safetensors") and len(content) == len(shared.get(name, b"")):
            difference = np.subtract(*(np.frombuffer(numbers, "<u2") for numbers in (content, shared[name])))
            written[name + DIFFERENCE] = difference.tobytes()
        else:
            written[name] = content
    _write_variant(target, own, written)


def _write_variant(target: Path, unpacked: Mapping[str, bytes], written: Mapping[str, bytes]) -> None:
    """Writes files and the manifest of all files that the variant has when it is unpacked."""
    for name, content in written.items():
        _write(target, name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in unpacked.items()}
    sizes = {name: len(content) for name, content in unpacked.items()}
    commit = hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()[:12]
    manifest.write_listed(target, "embedded", commit, sizes, hashes)


def _names(source: Path) -> list[str]:
    found = (file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
    return sorted(name for name in found if is_wanted(name))


def _content(file: Path) -> bytes:
    """A file's content, with all tensors in two bytes a number if it is a weight file."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    import torch
    from safetensors.torch import load_file, save

    dtype = torch.float16 if file.parent.name == "vae" else torch.bfloat16
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    content: bytes = save(tensors, metadata={"format": "pt"})
    return content


def _write(target: Path, name: str, content: bytes) -> None:
    differs = name.endswith(DIFFERENCE)
    is_large = name.endswith(".safetensors") or len(content) > _LARGE
    file = target / (name + SUFFIX if is_large and not differs else name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress(content, filters=_LZMA) if is_large or differs else content)


if __name__ == "__main__":
    main()

"""Finds or fetches the checkpoint of a model.

A checkpoint is a folder in the diffusers layout of AceStepPipeline. It comes from a Hugging Face repository, an object store or a
local folder. The embedded checkpoint is part of this package, and the random one is built when it is needed.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from serve_app import errors
from serve_app.config import ModelArgs
from serve_app.config.sources import BUILT_IN, EMBEDDED, PACKAGED, RANDOM
from serve_app.weights import bucket, embedded, hub, random_weights
from serve_app.weights.cache import Plan, fetch, is_disk_full
from serve_app.weights.progress import Report


def resolve(name: str, args: ModelArgs, cache: Path, report: Report, online: bool | None = None) -> Path:
    """Returns the folder with the checkpoint of model `name`. Fetches, unpacks or builds the checkpoint if it does not exist yet.

    Reports the phase "download". If `online` is false, nothing is fetched, and a checkpoint that is not cached is HubUnreachable.
    If it is None, huggingface_hub's variable HF_HUB_OFFLINE decides, for every kind of source. The caller must have resolved the
    sources `auto` and `simulated`.

    Raises:
        MissingFile: the local folder does not exist.
        UnknownRepository, UnknownRevision, HubTokenRefused, HubUnreachable, DiskFull, CorruptFile, WrongLayout: see `errors`.
    """
    with _disk_errors(cache):
        if args.source in PACKAGED:
            return fetch(embedded.planned(cache / EMBEDDED, args.source), report)
        if args.source == RANDOM:
            return random_weights.build(cache, report)
        if is_local(args.source):
            return _local(name, Path(args.source).expanduser())
        return fetch(_planned(name, args, cache, online), report)


def missing_bytes(name: str, args: ModelArgs, cache: Path) -> int:
    """Returns how many bytes `resolve` would fetch. It asks the hub or the bucket; built-in and local checkpoints need no bytes.

    Raises:
        LoadError: as `resolve` does.
    """
    if not has_commit(args.source):
        return 0
    return _planned(name, args, cache, None).missing_bytes


def is_local(source: str) -> bool:
    """Whether `source` is a local folder, which is used where it is."""
    return source.startswith(("/", "~"))


def has_commit(source: str) -> bool:
    """Whether a checkpoint of this source is fetched into the cache, where its folder is named after its commit."""
    return source not in BUILT_IN and not is_local(source)


def _planned(name: str, args: ModelArgs, cache: Path, online: bool | None) -> Plan:
    online = _online() if online is None else online
    if args.source.startswith(bucket.SCHEMES):
        return bucket.planned(name, args.source, cache / "buckets", online)
    return hub.planned(name, args.source, args.revision, cache / "hub", online)


def _online() -> bool:
    """Whether HF_HUB_OFFLINE allows fetching. Read at each call; huggingface_hub reads it only at import."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE")


@contextlib.contextmanager
def _disk_errors(cache: Path) -> Iterator[None]:
    """Turns the error of a full disk inside the block into DiskFull."""
    try:
        yield
    except Exception as error:
        if isinstance(error, errors.SophiaError) or not is_disk_full(error):
            raise
        raise errors.DiskFull(f"The disk of {cache} is full. Free disk space, or set another data_dir.") from error


def _local(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise errors.MissingFile(
            f"models.{name}.source: the folder {folder} does not exist on this node. "
            "Put the checkpoint there, or set another source."
        )
    return folder

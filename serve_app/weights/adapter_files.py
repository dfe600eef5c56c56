"""Finds or fetches the file of an adapter, from the same kinds of source as a checkpoint."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote

from serve_app import errors
from serve_app.config import AdapterArgs
from serve_app.weights import hub
from serve_app.weights.cache import Plan, Remote, fetch, plan
from serve_app.weights.find import disk_errors, is_local, is_online, remote_of
from serve_app.weights.progress import Report

ADAPTER_CONFIG: Final = "adapter_config.json"
"""PEFT's file with an adapter's alpha, beside its weights."""
PEFT_WEIGHTS: Final = "adapter_model.safetensors"
_WEIGHTS: Final = (PEFT_WEIGHTS, "lokr_weights.safetensors", "pytorch_lora_weights.safetensors")
"""Names of the weights in an adapter's folder: PEFT's, the original ACE-Step's for LoKr, and diffusers'."""
_SUFFIX: Final = ".safetensors"


def adapter_file(
    model: str, name: str, args: AdapterArgs, cache: Path, report: Report, *, online: bool | None = None
) -> Path:
    """Returns the file with the weights of the adapter `name` of `model`; fetches it if it is not in the cache.

    `report` and `online` are those of `resolve`.

    Raises:
        BadAdapter: the source has no adapter, or several.
        UnknownRepository, UnknownRevision, HubTokenRefused, HubUnreachable, DiskFull, CorruptFile: see `errors`.
    """
    if is_local(args.source):
        return _local_file(Path(args.source).expanduser() / (args.file or ""))
    with disk_errors(cache):
        folder = fetch(_planned(model, name, args, cache, is_online() if online is None else online), report)
    return _local_file(folder / (args.file or ""))


def _local_file(place: Path) -> Path:
    if place.is_dir():
        return place / _choice(str(place), {file.name for file in place.iterdir()})
    if not place.is_file():
        raise errors.BadAdapter(f"{place} does not exist on this node.")
    return place.parent / _choice(str(place), {place.name})


def _choice(place: str, names: Iterable[str]) -> str:
    """Returns the name of the weights among the files in one folder. Raises BadAdapter."""
    weights = sorted(name for name in names if name.endswith(_SUFFIX))
    if not weights:
        raise errors.BadAdapter(
            f"{place} has no {_SUFFIX} file. Sophia reads no other format, because .bin and .pt files can run code."
        )
    known = [name for name in _WEIGHTS if name in weights]
    if not known and len(weights) > 1:
        raise errors.BadAdapter(
            f"{place} has {len(weights)} {_SUFFIX} files. Set `file` to one of them: {', '.join(weights)}."
        )
    return (known or weights)[0]


def _planned(model: str, name: str, args: AdapterArgs, cache: Path, online: bool) -> Plan:
    """Returns the plan for a source that is not on this node. `online` is whether the network may be used."""
    revision = args.revision or hub.default_revision(args.source)
    home = cache / "adapters" / quote(f"{args.source}/{args.file or ''}", safe="")
    return plan(home, revision, hub.commit_of(revision), partial(_remote, model, name, args, revision, online))


def _remote(model: str, name: str, args: AdapterArgs, revision: str, online: bool) -> Remote:
    if not online:
        raise errors.HubUnreachable(
            f"The adapter {name} ({args.source}) is not in the cache, and offline mode (HF_HUB_OFFLINE) is on. Run 'sophia weights "
            f"pull {model}' on a machine with network access, or copy the cache from a node that has the adapter."
        )
    setting = f"models.{model}.adapters.{name}"
    source = remote_of(setting.removeprefix("models."), f"{setting}.source", args.source, revision, online)
    wanted = _wanted(source, args.file)
    return replace(source, list_files=lambda: {file: source.files[file] for file in wanted})


def _wanted(source: Remote, given: str | None) -> list[str]:
    """Returns the weights and, if there is one, adapter_config.json. `given` names a file or folder of the source."""
    folder = PurePosixPath(given or "")
    names = set(source.files)
    if given in names:
        found = {folder.name}
        folder = folder.parent
    else:
        found = {PurePosixPath(file).name for file in names if PurePosixPath(file).parent == folder}
    weights = folder / _choice(f"{source.title}/{given or ''}".rstrip("/"), found)
    return [str(file) for file in (weights, folder / ADAPTER_CONFIG) if str(file) in names]

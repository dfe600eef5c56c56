"""Finds or fetches the checkpoint of a model.

A checkpoint is a folder in the diffusers layout of AceStepPipeline. It comes from a Hugging Face repository, an object store or a
local folder, and is converted on the way if it is in another layout. The embedded checkpoint is part of this package, and the
random one is built when it is needed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serve_app import errors
from serve_app.config import ModelArgs
from serve_app.config.sources import BUILT_IN, EMBEDDED, PACKAGED, RANDOM
from serve_app.weights import bucket, convert, embedded, folder, hub, random_weights
from serve_app.weights.cache import Plan, Remote, fetch, is_disk_full, plan
from serve_app.weights.layout import INDEX, names_components, read_json
from serve_app.weights.progress import Report


def resolve(name: str, args: ModelArgs, cache: Path, report: Report, online: bool | None = None) -> Path:
    """Returns the folder with the checkpoint of model `name`. Fetches, unpacks or builds the checkpoint if it does not exist yet.

    Reports the phase "download". If `online` is false, nothing is fetched, and a checkpoint that is not cached is HubUnreachable.
    If it is None, huggingface_hub's variable HF_HUB_OFFLINE decides, for every kind of source. The caller must have resolved the
    sources `auto` and `simulated`.

    Raises:
        MissingFile: the local folder does not exist.
        UnknownRepository, UnknownRevision, HubTokenRefused, HubUnreachable, DiskFull, CorruptFile, WrongLayout,
        WrongTensors: see `errors`.
    """
    with disk_errors(cache):
        if args.source in PACKAGED:
            return fetch(embedded.planned(cache / EMBEDDED, args.source), report)
        if args.source == RANDOM:
            return random_weights.build(cache, report)
        args = _without_file(args)
        place = _usable_folder(name, args) or fetch(_planned(name, args, cache, online), report)
        if is_local(args.source) or names_components(place / INDEX):
            return place
        # A repository that is complete but for entries of its model_index.json, which only its content shows.
        return fetch(_planned(name, args.model_copy(update={"source": str(place)}), cache, online), report)


def missing_bytes(name: str, args: ModelArgs, cache: Path) -> int:
    """Returns how many bytes `resolve` would fetch or convert. It asks the hub or the bucket.

    Built-in checkpoints, and local ones that need no conversion, need no bytes.

    Raises:
        LoadError: as `resolve` does.
    """
    args = _without_file(args)
    if args.source in BUILT_IN or _usable_folder(name, args):
        return 0
    return _planned(name, args, cache, None).missing_bytes


def conversion(name: str, args: ModelArgs, cache: Path) -> dict[str, Any] | None:
    """Returns the record of how a model's checkpoint was or will be converted, None if it needs no conversion.

    The record's keys are those of `conversion.json` in the converted checkpoint. Reads headers, and no weights.

    Raises:
        LoadError: as `resolve` does.
    """
    args = _without_file(args)
    if args.source in BUILT_IN or _usable_folder(name, args):
        return None
    planned = _planned(name, args, cache, None)
    if planned.missing_bytes == 0:
        record = planned.folder / convert.RECORD
        return read_json(record) if record.exists() else None
    if planned.remote is None or convert.RECORD not in planned.remote.files:
        return None
    return dict(json.loads(b"".join(planned.remote.read(convert.RECORD, 0))))


def is_local(source: str) -> bool:
    """Whether `source` is a local folder or file. A folder is used where it is, unless it needs a conversion."""
    return source.startswith(("/", "~"))


def has_commit(source: str) -> bool:
    """Whether a checkpoint of this source is fetched into the cache, where its folder is named after its commit."""
    return source not in BUILT_IN and not is_local(source)


def _planned(name: str, args: ModelArgs, cache: Path, online: bool | None) -> Plan:
    """Returns the plan for a source that is not used where it is."""
    online = is_online() if online is None else online
    choice = convert.Choice(name, args, partial(_parts_from, name, args, online))
    setting = f"models.{name}.source"

    def query() -> Remote:
        return convert.arranged(choice, remote_of(name, setting, args.source, args.revision, online))

    def query_folder() -> Remote:
        place = _existing(setting, args.source)
        names = convert.relevant(choice, args.source, folder.names(place))
        return convert.arranged(choice, folder.remote(place, names), always=True)

    if is_local(args.source):
        digest = hashlib.sha256(args.source.encode()).hexdigest()[:16]
        home = cache / "local" / f"{Path(args.source).name}-{digest}"
        return plan(home, "latest", None, query_folder, choice.suffix)
    if args.source.startswith(bucket.SCHEMES):
        home = cache / "buckets" / quote(args.source, safe="")
        return plan(home, "latest", None, query, choice.suffix)
    revision = args.revision or hub.default_revision(args.source)
    home = cache / "hub" / args.source.replace("/", "--")
    return plan(home, revision, hub.commit_of(revision), query, choice.suffix)


def _parts_from(name: str, args: ModelArgs, online: bool) -> Remote:
    """Returns the source of what the checkpoint lacks. A repository may have a revision: `owner/name@revision`."""
    source, _, revision = args.parts_from.partition("@")
    return remote_of(name, f"models.{name}.parts_from", source, revision or None, online)


def remote_of(name: str, setting: str, source: str, revision: str | None, online: bool) -> Remote:
    """Returns all files of a source. `setting` is the full name of the setting that names it. Raises LoadError."""
    if is_local(source):
        place = _existing(setting, source)
        return folder.remote(place, folder.names(place))
    if source.startswith(bucket.SCHEMES):
        return bucket.remote(name, setting, source, online)
    return hub.remote(name, setting, source, revision or hub.default_revision(source), online)


def is_online() -> bool:
    """Whether HF_HUB_OFFLINE allows fetching. Read at each call; huggingface_hub reads it only at import."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE")


@contextlib.contextmanager
def disk_errors(cache: Path) -> Iterator[None]:
    """Turns the error of a full disk inside the block into DiskFull."""
    try:
        yield
    except Exception as error:
        if isinstance(error, errors.SophiaError) or not is_disk_full(error):
            raise
        raise errors.DiskFull(f"The disk of {cache} is full. Free disk space, or set another data_dir.") from error


def _without_file(args: ModelArgs) -> ModelArgs:
    """Returns the settings with a source that is a local file replaced by its folder, and the file as `dit`."""
    place = Path(args.source).expanduser()
    if is_local(args.source) and place.suffix == ".safetensors" and place.is_file():
        return args.model_copy(update={"source": str(place.parent), "dit": place.name})
    return args


def _usable_folder(name: str, args: ModelArgs) -> Path | None:
    """Returns the folder of a local source that needs no conversion, None for every other source."""
    if not is_local(args.source):
        return None
    place = _existing(f"models.{name}.source", args.source)
    names_all = (place / INDEX).exists() and names_components(place / INDEX)
    return place if names_all and args.dit is None and convert.usable(folder.names(place)) else None


def _existing(setting: str, source: str) -> Path:
    place = Path(source).expanduser()
    if not place.is_dir():
        raise errors.MissingFile(
            f"{setting}: the folder {place} does not exist on this node. Put the checkpoint there, or set another source."
        )
    return place

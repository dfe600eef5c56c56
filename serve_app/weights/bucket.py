"""Fetches a checkpoint from an object store (S3, Google Cloud Storage or Azure) with obstore.

Credentials come from the provider's usual environment variables. Hashes come from the manifest, if the bucket has one: copy a
complete folder of the cache into the bucket.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from serve_app import errors
from serve_app.weights import manifest
from serve_app.weights.cache import Interrupted, Plan, Remote, RemoteFile, offline, plan
from serve_app.weights.layout import is_wanted, wrong_layout

SCHEMES: Final = ("s3://", "gs://", "az://")

_RANGE_BYTES: Final = 8 << 20
"""The size of one range request. obstore aborts a response that takes longer than 30 s."""

_RETRY_S: Final = 10
"""How long obstore retries a request by itself. After that, the cache retries."""

_REFUSED: Final = re.compile(r"status: 40[0134]")
"""Found in errors that mean: the provider refused the request. obstore has no exception class for a missing bucket."""


def planned(name: str, url: str, cache: Path, online: bool) -> Plan:
    """Returns the plan for fetching the checkpoint below `url` (`s3://bucket/prefix`).

    Raises:
        UnknownRepository: the bucket or prefix does not exist, access is denied, or `url` is malformed.
        HubUnreachable, MissingFile, WrongLayout.
    """
    return plan(cache / quote(url, safe=""), "latest", None, partial(_remote, name, url, online))


def _remote(name: str, url: str, online: bool) -> Remote:
    if not online:
        raise offline(name, url)
    store = _open(name, url)
    listed = _listed(name, url, store)
    if "model_index.json" not in listed:
        raise wrong_layout(url, set(listed))
    hashes = manifest.known_hashes(_content(store, manifest.NAME)) if manifest.NAME in listed else {}
    files = {key: RemoteFile(item["size"], hashes.get(key)) for key, item in listed.items() if is_wanted(key)}
    state = json.dumps(sorted((key, item["size"], item["e_tag"]) for key, item in listed.items()))
    commit = hashlib.sha256(state.encode()).hexdigest()[:40]
    return Remote(url, commit, files, partial(_read, store, files))


def _open(name: str, url: str) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        return from_url(url, retry_config={"retry_timeout": timedelta(seconds=_RETRY_S)})
    except (BaseError, ValueError) as error:
        raise errors.UnknownRepository(
            f"models.{name}.source: {url} cannot be used ({type(error).__name__}). Check its spelling and the provider's "
            "environment variables."
        ) from error


def _listed(name: str, url: str, store: Any) -> dict[str, Any]:
    """Returns every object below the prefix by its key without the prefix.

    Error messages never quote the provider's answers, which may contain access keys.
    """
    import obstore
    from obstore.exceptions import BaseError

    try:
        listed = {item["path"]: item for page in obstore.list(store) for item in page}
    except (BaseError, OSError) as error:
        if _REFUSED.search(str(error)):
            raise errors.UnknownRepository(
                f"models.{name}.source: {url} does not exist or access is denied ({type(error).__name__}). Check the "
                "bucket's name and this node's credentials."
            ) from error
        raise errors.HubUnreachable(
            f"{url} did not answer ({type(error).__name__}) and is not in the cache. Check this node's network and the "
            "provider's environment variables."
        ) from error
    if not listed:
        raise errors.UnknownRepository(f"models.{name}.source: {url} has no files. Check the prefix.")
    return listed


def _content(store: Any, key: str) -> bytes:
    import obstore

    return bytes(obstore.get(store, key).bytes())


def _read(store: Any, files: dict[str, RemoteFile], key: str, start: int) -> Iterator[bytes]:
    """Yields the content of an object from byte `start`. Raises Interrupted."""
    import obstore
    from obstore.exceptions import BaseError

    size = files[key].size
    for at in range(start, size, _RANGE_BYTES):
        try:
            yield bytes(obstore.get_range(store, key, start=at, end=min(at + _RANGE_BYTES, size)))
        except (BaseError, OSError) as error:
            raise Interrupted from error

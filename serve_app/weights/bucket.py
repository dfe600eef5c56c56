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
from typing import Any, Final

from serve_app import errors
from serve_app.weights import manifest
from serve_app.weights.cache import Interrupted, Remote, RemoteFile, offline

SCHEMES: Final = ("s3://", "gs://", "az://")

_RANGE_BYTES: Final = 8 << 20
"""The size of one range request. obstore aborts a response that takes longer than 30 s."""

_RETRY_S: Final = 10
"""How long obstore retries a request by itself. After that, the cache retries."""

_REFUSED: Final = re.compile(r"status: 40[0134]")
"""Found in errors that mean: the provider refused the request. obstore has no exception class for a missing bucket."""


def remote(name: str, setting: str, url: str, online: bool) -> Remote:
    """Returns all files below `url` (`s3://bucket/prefix`). `setting` is the full name of the setting with the URL.

    Raises:
        UnknownRepository: the bucket or prefix does not exist, access is denied, or `url` is malformed.
        HubUnreachable.
    """
    if not online:
        raise offline(name, url)
    store = _open(setting, url)
    listed = _listed(setting, url, store)
    hashes = manifest.known_hashes(_content(store, manifest.NAME)) if manifest.NAME in listed else {}
    files = {key: RemoteFile(item["size"], hashes.get(key)) for key, item in listed.items()}
    state = json.dumps(sorted((key, item["size"], item["e_tag"]) for key, item in listed.items()))
    commit = hashlib.sha256(state.encode()).hexdigest()[:40]
    return Remote(url, commit, lambda: files, partial(_read, store, files))


def _open(setting: str, url: str) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        return from_url(url, retry_config={"retry_timeout": timedelta(seconds=_RETRY_S)})
    except (BaseError, ValueError) as error:
        raise errors.UnknownRepository(
            f"{setting}: {url} cannot be used ({type(error).__name__}). Check its spelling and the provider's "
            "environment variables."
        ) from error


def _listed(setting: str, url: str, store: Any) -> dict[str, Any]:
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
                f"{setting}: {url} does not exist or access is denied ({type(error).__name__}). Check the "
                "bucket's name and this node's credentials."
            ) from error
        raise errors.HubUnreachable(
            f"{url} did not answer ({type(error).__name__}) and is not in the cache. Check this node's network and the "
            "provider's environment variables."
        ) from error
    if not listed:
        raise errors.UnknownRepository(f"{setting}: {url} has no files. Check the prefix.")
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

"""A checkpoint in an object store: S3, Google Cloud Storage or Azure, through obstore.

Credentials come from the environment, under the provider's usual names. Hashes come from the manifest, where one lies in
the bucket: copy a folder of the cache there as it is.
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

_PIECE_BYTES: Final = 8 << 20
"""A request each: one long response would be cut off by obstore's client after 30 s."""

_RETRY_S: Final = 10
"""How long obstore tries a request again by itself; the cache has patience of its own."""

_REFUSED: Final = re.compile(r"status: 40[0134]")
"""The provider answered and said no. obstore has no exception of its own for a bucket that does not exist."""


def planned(name: str, url: str, cache: Path, online: bool) -> Plan:
    """Where the checkpoint below `url` (`s3://bucket/prefix`) is or will be.

    Raises:
        UnknownRepository: also when `url` cannot be read.
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
            f"models.{name}.source: {url} cannot be used ({type(error).__name__}): check its spelling and the provider's "
            "variables in the environment."
        ) from error


def _listed(name: str, url: str, store: Any) -> dict[str, Any]:
    """Every object below the prefix, by its key from there on. The messages never quote the answers: they may hold keys."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        listed = {item["path"]: item for page in obstore.list(store) for item in page}
    except (BaseError, OSError) as error:
        if _REFUSED.search(str(error)):
            raise errors.UnknownRepository(
                f"models.{name}.source: {url} is not there or may not be read ({type(error).__name__}): check the bucket's "
                "name and this node's credentials."
            ) from error
        raise errors.HubUnreachable(
            f"{url} did not answer ({type(error).__name__}) and is not in the cache. Check this node's network and the "
            "provider's variables in the environment."
        ) from error
    if not listed:
        raise errors.UnknownRepository(f"models.{name}.source: there is nothing below {url}: check the prefix.")
    return listed


def _content(store: Any, key: str) -> bytes:
    import obstore

    return bytes(obstore.get(store, key).bytes())


def _read(store: Any, files: dict[str, RemoteFile], key: str, start: int) -> Iterator[bytes]:
    import obstore
    from obstore.exceptions import BaseError

    size = files[key].size
    for at in range(start, size, _PIECE_BYTES):
        try:
            yield bytes(obstore.get_range(store, key, start=at, end=min(at + _PIECE_BYTES, size)))
        except (BaseError, OSError) as error:
            raise Interrupted from error

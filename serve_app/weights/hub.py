"""A checkpoint in a Hugging Face repository.

Not by huggingface_hub's snapshot_download: since 2.x it downloads to a name of its own and deletes that on failure
(huggingface_hub pull 4228), so an interrupted 10 GB file starts from nothing; and its progress comes in steps of 10 MB.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from serve_app import errors
from serve_app.weights.cache import Interrupted, Plan, Remote, RemoteFile, offline, plan
from serve_app.weights.layout import is_wanted, wrong_layout

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.hf_api import ModelInfo

DEFAULT_REPOSITORY: Final = "ACE-Step/acestep-v15-xl-turbo-diffusers"
DEFAULT_REVISION: Final = "200ba991ae448051e14b0183157e35c2d27c9fb0"
"""The released checkpoint that `auto` means on a GPU, pinned to the commit that its users pin."""


def planned(name: str, repository: str, revision: str | None, cache: Path, online: bool) -> Plan:
    """Where `repository` at `revision` (when None, the pinned one or `main`) is or will be.

    Raises:
        UnknownRepository, UnknownRevision, HubTokenRefused, HubUnreachable, MissingFile, WrongLayout.
    """
    revision = revision or (DEFAULT_REVISION if repository == DEFAULT_REPOSITORY else "main")
    commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None
    home = cache / repository.replace("/", "--")
    return plan(home, revision, commit, partial(_remote, name, repository, revision, online))


def _remote(name: str, repository: str, revision: str, online: bool) -> Remote:
    if not online:
        raise offline(name, f"{repository} at {revision}")
    info = _repository_info(name, repository, revision)
    commit = cast(str, info.sha)
    return Remote(repository, commit, _wanted_files(repository, info), partial(_read, name, repository, commit))


def _repository_info(name: str, repository: str, revision: str) -> "ModelInfo":
    """What the hub says of the repository. The messages never quote its answers: they could hold a token."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    setting = f"models.{name}.source"
    try:
        return HfApi(endpoint=_endpoint()).model_info(repository, revision=revision, files_metadata=True, timeout=15)
    except HFValidationError as error:
        raise errors.UnknownRepository(
            f"{setting}: {repository!r} is neither a repository id (owner/name) nor an absolute folder."
        ) from error
    except GatedRepoError as error:
        raise _gated(name, repository) from error
    except RevisionNotFoundError as error:
        raise errors.UnknownRevision(
            f"models.{name}.revision: {repository} has no revision {revision!r}. Give a commit, tag or branch that it has."
        ) from error
    except RepositoryNotFoundError as error:
        raise errors.UnknownRepository(
            f"{setting}: {_host()} knows no repository {repository}, or it is private: check the name, or set HF_TOKEN."
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise _token_refused() from error
        raise errors.HubUnreachable(
            f"{_host()} cannot serve {repository} just now: it answered {_answer(error.response)}. It is not in the cache. "
            "Sophia asks again later; if this stays, look at the hub's status page, or fetch the checkpoint elsewhere and name "
            "its folder as the source."
        ) from error
    except httpx2.TransportError as error:
        raise errors.HubUnreachable(
            f"{_host()} did not answer ({type(error).__name__}) and {repository} is not in the cache. Check this node's "
            "network and HF_ENDPOINT, or copy the checkpoint to a folder and name that as the source."
        ) from error


def _gated(name: str, repository: str) -> errors.UnknownRepository:
    return errors.UnknownRepository(
        f"models.{name}.source: {repository} is gated. Accept its terms on {_host()} and set HF_TOKEN on every worker's node."
    )


def _token_refused() -> errors.HubTokenRefused:
    return errors.HubTokenRefused(
        f"{_host()} refuses this node's token (HF_TOKEN, or the one that `hf auth login` saved): it has expired, was revoked or is "
        "mistyped. Make a new one, or remove it: public repositories need none."
    )


def _answer(response: "httpx2.Response") -> str:
    """Such as `429, and asks to wait 30 s`."""
    wait = response.headers.get("Retry-After", "")
    return f"{response.status_code}, and asks to wait {wait} s" if wait.isdecimal() else str(response.status_code)


def _endpoint() -> str | None:
    """Read at each call, not at import as huggingface_hub does, so that a running process can be pointed elsewhere."""
    return os.environ.get("HF_ENDPOINT")


def _host() -> str:
    return urlsplit(_endpoint() or "https://huggingface.co").hostname or "the hub"


def _wanted_files(repository: str, info: "ModelInfo") -> dict[str, RemoteFile]:
    """What the pipeline reads. The hub knows the hashes of files in its large storage, which are the weights."""
    listed = info.siblings or []
    if "model_index.json" not in {file.rfilename for file in listed}:
        raise wrong_layout(repository, {file.rfilename for file in listed})
    return {
        file.rfilename: RemoteFile(file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in listed
        if is_wanted(file.rfilename)
    }


def _read(model: str, repository: str, commit: str, name: str, start: int) -> Iterator[bytes]:
    """Raises Interrupted, or UnknownRepository or HubTokenRefused: those two no further try can cure."""
    import httpx2
    from huggingface_hub import get_session, get_token, hf_hub_url

    url = hf_hub_url(repository, name, revision=commit, endpoint=_endpoint())
    token = get_token()
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    if token:  # httpx2 drops it when the hub redirects to its storage, on another host
        headers["Authorization"] = f"Bearer {token}"
    try:
        with get_session().stream("GET", url, headers=headers, timeout=30, follow_redirects=True) as answer:
            if answer.headers.get("X-Error-Code") == "GatedRepo":
                raise _gated(model, repository)
            if answer.status_code == 401 and not answer.history:  # the hub itself, not the storage that it redirects to
                raise _token_refused() if token else _gated(model, repository)
            answer.raise_for_status()
            known = start if answer.status_code == 200 else 0  # a server that does not know ranges begins again
            for piece in answer.iter_bytes():
                yield piece[known:]
                known = max(known - len(piece), 0)
    except httpx2.HTTPStatusError as error:
        raise Interrupted(f"{_host()} answers {_answer(error.response)}") from error
    except httpx2.HTTPError as error:
        raise Interrupted from error

"""Fetches a checkpoint from a Hugging Face repository.

huggingface_hub's snapshot_download is not used, for two reasons. Since 2.x it writes to a temporary file and deletes it on failure
(huggingface_hub pull 4228), so an interrupted download of 10 GB starts again from zero. And it reports progress in steps of 10 MB.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from serve_app import errors
from serve_app.weights.cache import Interrupted, Remote, RemoteFile, offline

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.hf_api import ModelInfo

DEFAULT_REPOSITORY: Final = "ACE-Step/acestep-v15-xl-turbo-diffusers"
DEFAULT_REVISION: Final = "200ba991ae448051e14b0183157e35c2d27c9fb0"
"""The released checkpoint that `source: auto` selects on a GPU, pinned to a commit so that its files never change."""


def default_revision(repository: str) -> str:
    """Returns the revision to fetch where the configuration names none."""
    return DEFAULT_REVISION if repository == DEFAULT_REPOSITORY else "main"


def commit_of(revision: str) -> str | None:
    """Returns the revision if it is a commit, whose files never change, else None."""
    return revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None


def remote(name: str, setting: str, repository: str, revision: str, online: bool) -> Remote:
    """Returns all files of `repository` at `revision`. `setting` is the full name of the setting that names the repository.

    Raises:
        UnknownRepository, UnknownRevision, HubTokenRefused, HubUnreachable.
    """
    if not online:
        raise offline(name, f"{repository} at {revision}")
    info = _repository_info(name, setting, repository, revision)
    commit = cast(str, info.sha)
    files = _files(info)
    return Remote(repository, commit, lambda: files, partial(_read, setting, repository, commit))


def _repository_info(name: str, setting: str, repository: str, revision: str) -> "ModelInfo":
    """Returns the hub's description of the repository. Error messages never quote its answers, which could contain a token."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi(endpoint=_endpoint()).model_info(repository, revision=revision, files_metadata=True, timeout=15)
    except HFValidationError as error:
        raise errors.UnknownRepository(
            f"{setting}: {repository!r} is neither a repository id (owner/name) nor the absolute path of a folder."
        ) from error
    except GatedRepoError as error:
        raise _gated(setting, repository) from error
    except RevisionNotFoundError as error:
        raise errors.UnknownRevision(
            f"models.{name}.revision: {repository} has no revision {revision!r}. Set it to one of its commits, tags or branches."
        ) from error
    except RepositoryNotFoundError as error:
        raise errors.UnknownRepository(
            f"{setting}: {_host()} has no repository {repository}, or it is private. Check the name, or set HF_TOKEN."
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise _token_refused() from error
        raise errors.HubUnreachable(
            f"{_host()} cannot serve {repository} at the moment: it answered {_answer(error.response)}. The checkpoint is not in "
            "the cache. Sophia tries again later. If the error persists, check the hub's status page, or copy the checkpoint to a "
            "folder and set source to it."
        ) from error
    except httpx2.TransportError as error:
        raise errors.HubUnreachable(
            f"{_host()} did not answer ({type(error).__name__}) and {repository} is not in the cache. Check this node's "
            "network and HF_ENDPOINT, or copy the checkpoint to a folder and set source to it."
        ) from error


def _gated(setting: str, repository: str) -> errors.UnknownRepository:
    return errors.UnknownRepository(
        f"{setting}: {repository} is gated. Accept its terms on {_host()} and set HF_TOKEN on every worker's node."
    )


def _token_refused() -> errors.HubTokenRefused:
    return errors.HubTokenRefused(
        f"{_host()} rejects this node's token (HF_TOKEN, or the one that `hf auth login` saved): it has expired, was revoked or is "
        "mistyped. Create a new token, or remove it if the repository is public."
    )


def _answer(response: "httpx2.Response") -> str:
    """Returns the status and the requested delay for a message: `429 and asked to wait 30 s`."""
    wait = response.headers.get("Retry-After", "")
    return f"{response.status_code} and asked to wait {wait} s" if wait.isdecimal() else str(response.status_code)


def _endpoint() -> str | None:
    """Returns HF_ENDPOINT. huggingface_hub reads it only at import; here a change takes effect in a running process."""
    return os.environ.get("HF_ENDPOINT")


def _host() -> str:
    return urlsplit(_endpoint() or "https://huggingface.co").hostname or "the hub"


def _files(info: "ModelInfo") -> dict[str, RemoteFile]:
    """Returns the repository's files. The hub lists hashes only for files in its large storage, such as the weights."""
    return {
        file.rfilename: RemoteFile(file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or []
    }


def _read(setting: str, repository: str, commit: str, name: str, start: int) -> Iterator[bytes]:
    """Yields the content of a file from byte `start`.

    Raises:
        Interrupted: the connection failed or the hub answered with an error. Another attempt may succeed.
        UnknownRepository, HubTokenRefused: another attempt cannot succeed.
    """
    import httpx2
    from huggingface_hub import get_session, get_token, hf_hub_url

    url = hf_hub_url(repository, name, revision=commit, endpoint=_endpoint())
    token = get_token()
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    if token:  # httpx2 does not send it to other hosts, such as the storage that the hub redirects to
        headers["Authorization"] = f"Bearer {token}"
    try:
        with get_session().stream("GET", url, headers=headers, timeout=30, follow_redirects=True) as answer:
            if answer.headers.get("X-Error-Code") == "GatedRepo":
                raise _gated(setting, repository)
            if answer.status_code == 401 and not answer.history:  # the answer comes from the hub, not from its storage
                raise _token_refused() if token else _gated(setting, repository)
            answer.raise_for_status()
            skipped = start if answer.status_code == 200 else 0  # a server without range support sends the whole file
            for piece in answer.iter_bytes():
                yield piece[skipped:]
                skipped = max(skipped - len(piece), 0)
    except httpx2.HTTPStatusError as error:
        raise Interrupted(f"{_host()} answered {_answer(error.response)}") from error
    except httpx2.HTTPError as error:
        raise Interrupted from error

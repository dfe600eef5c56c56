"""Explains the errors of disks, S3, Google Cloud Storage and Azure: a kind for clients, and a sentence for operators.

object_store has few error classes, and most failures are its `GenericError`. The cause is only in the error's text: an operating
system's error number, the error code in the store's response, the HTTP status, or a network error. The first row of the table that
matches decides.
"""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from serve_app.errors import ArtifactsCause


class Row(NamedTuple):
    """A known failure. `pattern` matches the error's text. `explanation` is for operators and may contain `Place.names`."""

    pattern: str
    kind: ArtifactsCause
    explanation: str


def _code(*codes: str) -> str:
    """A pattern for an error code in the store's XML or JSON response."""
    return rf"\b({'|'.join(codes)})\b"


def _status(*statuses: int) -> str:
    return rf"status code: ({'|'.join(map(str, statuses))})\b"


def _errno(*numbers: int) -> str:
    return rf"\(os error ({'|'.join(map(str, numbers))})\)"


_CREDENTIALS: Final = "check the provider's variables in the environment of every API process and worker"
_BUCKET: Final = "the bucket {bucket} does not exist: create it, or correct artifacts_url"
_RIGHTS: Final = (
    "these credentials lack a permission in the bucket {bucket}: Sophia must read, write, list and delete there"
)
_NOT_ACCEPTED: Final = f"the credentials are not accepted: {_CREDENTIALS}"

ROWS: Final = (
    # No answer from the store.
    Row(r"169\.254\.169\.254|metadata\.google\.internal", "refused", f"no credentials were found: {_CREDENTIALS}"),
    Row(r"dns error|failed to lookup address", "away", "its host name cannot be resolved: check the endpoint and the DNS"),
    Row(r"certificate|UnknownIssuer|CertNotValid", "away", "its TLS certificate is not trusted by this machine"),
    Row(r"ConnectionRefused", "away", "nothing listens at its endpoint"),
    Row(r"kind: Connect\b", "away", "its endpoint cannot be connected to: check the network and the firewall"),
    Row(r"kind: Timeout\b|TimedOut", "away", "it does not answer in time"),
    Row(r"- HTTP error: ", "away", "the connection to it broke"),
    # Error codes of object stores.
    Row(_code("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"), "missing", _BUCKET),
    Row(
        _code("RequestTimeTooSkewed", "RequestTimeTooSkew"),
        "refused",
        "this machine's clock differs too much from the store's: set it",
    ),
    Row(
        _code(
            "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
            "AuthenticationFailed", "NoAuthenticationInformation", "InvalidAuthenticationInfo",
        ),
        "refused",
        _NOT_ACCEPTED,
    ),
    Row(
        _code(
            "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException",
            "IncorrectEndpoint",
        ),
        "refused",
        "the bucket {bucket} lies in another region than the client is set to: check AWS_REGION and the endpoint",
    ),
    Row(
        _code("QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"),
        "full",
        "the bucket {bucket} is full, or over its quota",
    ),
    Row(_code("SlowDown", "ServerBusy", "TooManyRequests"), "away", "it is throttling requests"),
    Row(_code("AccessDenied", "AllAccessDisabled", "AuthorizationFailure", "AuthorizationPermissionMismatch"), "refused", _RIGHTS),
    # HTTP statuses.
    Row(_status(404), "missing", _BUCKET),
    Row(_status(401), "refused", _NOT_ACCEPTED),
    Row(_status(403), "refused", _RIGHTS),
    Row(
        rf"{_status(301, 302, 307, 308)}|Received redirect",
        "refused",
        "it redirects to another address: check AWS_REGION and the endpoint",
    ),
    Row(_status(507), "full", "the bucket {bucket} is full, or over its quota"),
    Row(_status(429), "away", "it is throttling requests"),
    Row(_status(500, 502, 503, 504), "away", "it is overloaded or failing"),
    # Errors of the file system.
    Row(_errno(errno.ENOSPC), "full", "the disk is full: {free}"),
    Row(_errno(errno.EDQUOT), "full", "the disk quota of the user {user} is used up"),
    Row(
        _errno(errno.EFBIG),
        "full",
        "the file is larger than the process (ulimit -f) or the file system allows",
    ),
    Row(_errno(errno.EROFS), "read_only", "the folder is read-only: remount it, or name it in the unit's ReadWritePaths"),
    Row(_errno(errno.EACCES, errno.EPERM), "refused", "the user {user} lacks a permission in the folder: change its owner or mode"),
    Row(
        _errno(errno.ENOENT, errno.ENOTDIR),
        "missing",
        "the folder does not exist, or part of its path is a file: correct artifacts_url, or mount it",
    ),
    Row(_errno(errno.EIO), "away", "the disk reports an input/output error"),
    Row(
        _errno(errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT),
        "away",
        "the network file system of the folder cannot be reached",
    ),
    Row(_errno(errno.EMFILE, errno.ENFILE), "away", "the process has too many open files (ulimit -n)"),
)  # fmt: skip
"""All known failures. Codes come before statuses, because a code is more specific."""

_MAX_CHARACTERS: Final = 160
_STATUS: Final = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_ERRNO: Final = re.compile(r"\(os error (\d+)\)")
_NO_BUCKET: Final = re.compile(_code("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"))


class Place(NamedTuple):
    """The location of an audio store: a folder, or the name of a bucket."""

    folder: Path | None
    bucket: str

    def names(self) -> dict[str, str]:
        """The values that an explanation may contain."""
        return {"bucket": repr(self.bucket), "free": _free(self.folder), "user": _user()}


def explain(error: Exception, place: Place) -> tuple[ArtifactsCause, str]:
    """The kind of failure, and a sentence for operators that contains no address, path or secret."""
    text = _text(error)
    for row in ROWS:
        if re.search(row.pattern, text):
            return row.kind, row.explanation.format(**place.names())
    return "away", _unknown(text)


def is_missing_bucket(error: Exception) -> bool:
    """Whether the bucket is missing. object_store raises the same error for that as for a missing object."""
    return _NO_BUCKET.search(str(error)) is not None


def _text(error: Exception) -> str:
    """The error's text. An OSError of Python gets its error number appended in the format of object_store."""
    number = error.errno if isinstance(error, OSError) else None
    return str(error) if number is None else f"{error} (os error {number})"


def _unknown(text: str) -> str:
    """A sentence for a failure that matches no row, without addresses."""
    if found := _STATUS.search(text):
        return f"it answered with the HTTP status {found[1].strip()}, which Sophia does not know"
    if found := _ERRNO.search(text):
        return f"the operating system reports: {os.strerror(int(found[1]))}"
    text_without_addresses = re.sub(r"\S*[/?@]\S*", "…", text.partition("\n")[0]).removeprefix("Generic ")
    return f"unknown error: {text_without_addresses[:_MAX_CHARACTERS]}"


def _free(folder: Path | None) -> str:
    there = folder
    while there is not None and not there.exists() and there != there.parent:
        there = there.parent
    if there is None:
        return "no space is free"
    room = shutil.disk_usage(there)
    if room.free > 0 and os.statvfs(there).f_favail == 0:
        return "no more files can be created (no free inodes)"
    return f"{room.free / 1e6:.1f} of {room.total / 1e6:.0f} MB are free"


def _user() -> str:
    return f"with the id {os.geteuid()}"

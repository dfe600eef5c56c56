"""The names by which clients know a song's file: `/v1/audio?path=…`."""

import re
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from serve_app.api.field_errors import shortened, wrong_field
from serve_app.api.file_names import extension_of
from serve_app.api.signed_links import LinkSigner
from serve_app.jobs import Job

AUDIO: Final = "/v1/audio"
_OPEN: Final = "open"
"""In place of a signature, where callers need no key."""
_VALUE: Final = re.compile(
    r"(?P<job>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})/(?P<number>[0-9]{1,2})/"
    r"(?P<expires>[0-9]{1,13})-(?P<signature>[A-Za-z0-9_-]{1,64})\.[a-z0-9]{2,5}"
)
_NAMES: Final = ("input:", "job:", "https://", "http://")


class Handle(NamedTuple):
    """A song that a client names, with the signature that opens its file without a key."""

    job: str
    number: int
    expires: int
    signature: str

    @property
    def path(self) -> str:
        """The native path of the file, which the signature is for."""
        return _path(self.job, self.number)

    @property
    def is_open(self) -> bool:
        """Whether it has no signature, because callers needed no key when it was made."""
        return self.signature == _OPEN


def file_url(job: Job, number: int, signer: LinkSigner) -> str:
    """The address of a song's file, which ends with the file's extension and opens without a header."""
    query = parse_qs(urlsplit(signer.link(_path(job.id, number))).query)
    opens = f"{query['expires'][0]}-{query['signature'][0]}" if query else f"0-{_OPEN}"
    value = f"{job.id}/{number}/{opens}.{extension_of(job.audio[number].format)}"
    return f"{AUDIO}?path={quote(value, safe='')}"


def handle_of(value: str) -> Handle | None:
    """The song that the value of `path` names, or an address with it. None for anything else."""
    with_path = parse_qs(urlsplit(value).query).get("path") if AUDIO in value else None
    found = _VALUE.fullmatch(with_path[0] if with_path else value)
    if found is None:
        return None
    return Handle(found["job"], int(found["number"]), int(found["expires"]), found["signature"])


def recording_name(field: str, value: Any, part: str) -> str:
    """Sophia's name of a recording that a client names. Raises InvalidRequest for a path: nothing of a machine is opened."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        handle = handle_of(text)
    except ValueError:  # no address
        handle = None
    if handle is not None:
        return f"job:{handle.job}/{handle.number}"
    if text.startswith(_NAMES):
        return text
    raise wrong_field(
        field,
        shortened(value),
        f"names no recording. Sophia opens no files by their paths: send the audio as the part {part!r} of a multipart body, or "
        "the `file` of an earlier song",
    )


def _path(job: str, number: int) -> str:
    return f"/v1/jobs/{job}/audio/{number}"

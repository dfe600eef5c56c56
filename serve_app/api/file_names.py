"""The file name that a browser or `curl -OJ` saves a song under: the Content-Disposition header (RFC 6266)."""

import re
import unicodedata
from typing import Final
from urllib.parse import quote

from serve_app.jobs import Job, StoredAudio
from serve_app.music import Format

_MAX_CHARACTERS: Final = 60
"""Longest title in a file name. In UTF-8 it takes at most 240 bytes; file systems allow 255."""

_FORBIDDEN: Final = re.compile(r'[\\/:*?"<>|%]+')
"""Characters that some operating system forbids in file names, and `%`, which some browsers decode (RFC 6266, appendix D)."""

_EXTENSIONS: Final[dict[Format, str]] = {"wav32": "wav", "aac": "m4a"}


def content_disposition(job: Job, file: StoredAudio) -> str:
    """The header for a song, which is named by title (or the start of the prompt) and seed, such as `Rainy day-7.mp3`.

    A stem has its track before the seed.
    """
    return _disposition("inline", job, _ending(file))


def lyrics_disposition(job: Job, file: StoredAudio) -> str:
    """The header for the lyrics of a song, which are named like the song: `Rainy day-7.lrc`."""
    return _disposition("inline", job, _ending(file, "lrc"))


def archive_disposition(job: Job) -> str:
    """The header for the zip file of all songs, such as `Rainy day.zip`."""
    return _disposition("attachment", job, ".zip")


def file_name(job: Job, file: StoredAudio) -> str:
    """The name of a song inside the zip file: the same as that of the song alone."""
    return f"{_title(job) or job.id}{_ending(file)}"


def _disposition(kind: str, job: Job, ending: str) -> str:
    """The header. `filename` is in ASCII. `filename*`, in UTF-8, is added if the title has other characters."""
    title = _title(job)
    ascii_title = _safe(unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode())
    header = f'{kind}; filename="{ascii_title or job.id}{ending}"'
    if title == ascii_title or not title:
        return header
    return f"{header}; filename*=UTF-8''{quote(title + ending, safe='')}"


def _title(job: Job) -> str:
    return _safe(job.request.title or job.request.prompt)


def _ending(file: StoredAudio, extension: str | None = None) -> str:
    track = f"-{file.track}" if file.track else ""
    return f"{track}-{file.seed}.{extension or extension_of(file.format)}"


def extension_of(file_format: Format) -> str:
    """The extension of files of a format."""
    return _EXTENSIONS.get(file_format, file_format)


def _safe(text: str) -> str:
    """The text on one line, without invisible characters (such as bidirectional marks) and those forbidden in file names."""
    visible = "".join(" " if letter.isspace() else letter for letter in text if letter.isspace() or _is_visible(letter))
    words = _FORBIDDEN.sub(" ", visible).split()
    return " ".join(words)[:_MAX_CHARACTERS].strip(" .-")


def _is_visible(letter: str) -> bool:
    return not unicodedata.category(letter).startswith("C")

"""The file name that a browser or `curl -OJ` saves a song under: the Content-Disposition header (RFC 6266)."""

import re
import unicodedata
from typing import Final
from urllib.parse import quote

from serve_app.jobs import Job

_MAX_CHARACTERS: Final = 60
"""Longest title in a file name. In UTF-8 it takes at most 240 bytes; file systems allow 255."""

_FORBIDDEN: Final = re.compile(r'[\\/:*?"<>|%]+')
"""Characters that some operating system forbids in file names, and `%`, which some browsers decode (RFC 6266, appendix D)."""

_EXTENSIONS: Final = {"wav32": "wav", "aac": "m4a"}


def content_disposition(job: Job, seed: int, audio_format: str) -> str:
    """The header for a file named by title (or the start of the prompt) and seed, such as `Rainy day-7.mp3`.

    `filename` is in ASCII. `filename*`, in UTF-8, is added if the title has other characters.
    """
    ending = f"-{seed}.{_EXTENSIONS.get(audio_format, audio_format)}"
    title = _safe(job.request.title or job.request.prompt)
    ascii_title = _safe(unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode())
    header = f'inline; filename="{ascii_title or job.id}{ending}"'
    if title == ascii_title or not title:
        return header
    return f"{header}; filename*=UTF-8''{quote(title + ending, safe='')}"


def _safe(text: str) -> str:
    """The text on one line, without invisible characters (such as bidirectional marks) and those forbidden in file names."""
    visible = "".join(" " if letter.isspace() else letter for letter in text if letter.isspace() or _is_visible(letter))
    words = _FORBIDDEN.sub(" ", visible).split()
    return " ".join(words)[:_MAX_CHARACTERS].strip(" .-")


def _is_visible(letter: str) -> bool:
    return not unicodedata.category(letter).startswith("C")

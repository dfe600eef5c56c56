"""The name under which a file is saved, and the header that says it (RFC 6266)."""

import re
import unicodedata
from typing import Final
from urllib.parse import quote

from serve_app.jobs import Job

_LONGEST: Final = 60
"""Characters of a title in a name. In UTF-8 they are at most 240 bytes, and file systems take 255."""

_NOT_IN_NAMES: Final = re.compile(r'[\\/:*?"<>|%]+')
"""What some system does not take in a file's name, and the percent sign, which some browsers decode (RFC 6266, appendix D)."""

_EXTENSIONS: Final = {"wav32": "wav", "aac": "m4a"}


def content_disposition(job: Job, seed: int, audio_format: str) -> str:
    """Title (or the prompt's beginning) and seed, as in `Rainy day-7.mp3`: in ASCII, and in UTF-8 where that says more."""
    ending = f"-{seed}.{_EXTENSIONS.get(audio_format, audio_format)}"
    title = _readable(job.request.title or job.request.prompt)
    plain = _readable(unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode())
    header = f'inline; filename="{plain or job.id}{ending}"'
    if title == plain or not title:
        return header
    return f"{header}; filename*=UTF-8''{quote(title + ending, safe='')}"


def _readable(text: str) -> str:
    """One line of what can be seen, without what a file's name cannot hold: line ends, controls, marks that turn the reading's
    direction.
    """
    seen = "".join(" " if letter.isspace() else letter for letter in text if letter.isspace() or _is_seen(letter))
    words = _NOT_IN_NAMES.sub(" ", seen).split()
    return " ".join(words)[:_LONGEST].strip(" .-")


def _is_seen(letter: str) -> bool:
    return not unicodedata.category(letter).startswith("C")
